// Asks for the API key. It stays in this tab's session storage and is sent with every request.

import { key } from "./api.js";
import { byId } from "./format.js";
import { reconnect } from "./feed.js";

let retry = null;

export function startKeyDialog() {
  byId("key").addEventListener("click", () => askForKey());
  const dialog = byId("key-dialog");
  // Enter in the field means the key, though the other button stands first.
  byId("key-field").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    dialog.close("keep");
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "keep") key.set(byId("key-field").value.trim());
    if (dialog.returnValue === "forget") key.set("");
    byId("key-field").value = "";
    const again = retry;
    retry = null;
    show();
    if (dialog.returnValue !== "keep" && dialog.returnValue !== "forget") return;
    reconnect();
    if (dialog.returnValue === "keep") again?.();
  });
  show();
}

/** Opens the dialog; `why` is what was refused, `again` what to try with the new key. */
export function askForKey(why = "", again = null) {
  retry = again;
  const note = byId("key-why");
  note.hidden = !why;
  note.textContent = why;
  byId("key-field").value = key.get();
  const dialog = byId("key-dialog");
  dialog.returnValue = "";
  if (!dialog.open) dialog.showModal();
  byId("key-field").focus();
}

function show() {
  byId("key").textContent = key.get() ? "Key: set" : "Key";
}
