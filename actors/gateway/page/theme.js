// Light, dark, or as the system has it; and the theme's colours for what is drawn by hand.

const KEPT = "expertmesh-theme";
const CHOICES = ["system", "light", "dark"];
const listeners = new Set();
const system = matchMedia("(prefers-color-scheme: dark)");
const probe = document.createElement("i");
let resolved = new Map();

export const isDark = () => (choice() === "system" ? system.matches : choice() === "dark");

/** A custom property's colour as the browser resolves it now. */
export function colour(name) {
  if (!resolved.has(name)) {
    if (!probe.isConnected) {
      probe.hidden = true;
      document.body.append(probe);
    }
    probe.style.color = `var(--${name})`;
    resolved.set(name, getComputedStyle(probe).color);
  }
  return resolved.get(name);
}

export const series = (index) => colour(`series-${index % 6}`);

export const onTheme = (redraw) => listeners.add(redraw);

export function startTheme(button) {
  const say = () => {
    button.textContent = `Theme: ${choice()}`;
    if (choice() === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = choice();
    resolved = new Map();
    for (const redraw of listeners) redraw();
  };
  button.addEventListener("click", () => {
    localStorage.setItem(KEPT, CHOICES[(CHOICES.indexOf(choice()) + 1) % CHOICES.length]);
    say();
  });
  system.addEventListener("change", say);
  say();
}

function choice() {
  const kept = localStorage.getItem(KEPT);
  return CHOICES.includes(kept) ? kept : "system";
}
