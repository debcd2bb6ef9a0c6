// Sends a prompt and shows its tokens as they come, with the gap before each.

import { ApiError, call, events } from "./api.js";
import { fitted } from "./canvas.js";
import { byId, count, element, msText } from "./format.js";
import { askForKey } from "./key_dialog.js";
import { state, watch } from "./state.js";
import { colour, onTheme } from "./theme.js";

const LATE = 3;
let running = null;
let gaps = [];

export function startPrompt() {
  byId("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("prompt-form").requestSubmit();
  });
  byId("prompt-stop").addEventListener("click", () => running?.abort());
  watch(["about"], () => {
    const chat = document.querySelector('input[name="prompt-kind"][value="chat"]');
    chat.disabled = !state.about.has_chat;
    byId("prompt-tokens").max = state.about.max_context_tokens;
    const has = state.about.has_tokenizer;
    byId("prompt-send").disabled = Boolean(running) || !has;
    if (!has) note("This checkpoint has no tokenizer: it takes token ids alone, which this box does not send.");
  });
  new ResizeObserver(drawGaps).observe(byId("gaps"));
  onTheme(drawGaps);
  figures({});
}

function body(kind) {
  const seed = byId("prompt-seed").value;
  const prompt = byId("prompt").value;
  return {
    ...(kind === "chat" ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    model: state.about?.model,
    max_tokens: Number(byId("prompt-tokens").value),
    temperature: Number(byId("prompt-temperature").value),
    ...(seed ? { seed: Number(seed) } : {}),
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
  };
}

async function send() {
  if (running) return;
  const kind = document.querySelector('input[name="prompt-kind"]:checked').value;
  const answer = byId("answer");
  answer.replaceChildren(element("span", { class: "given" }, kind === "chat" ? `${byId("prompt").value}\n\n` : byId("prompt").value));
  running = new AbortController();
  gaps = [];
  busy(true);
  note("");
  const begun = performance.now();
  const told = { begun, first: null, last: begun, tokens: 0, finish: "", prompt: null };
  try {
    const response = await call(kind === "chat" ? "v1/chat/completions" : "v1/completions", { body: body(kind), signal: running.signal });
    for await (const event of events(response)) takeEvent(event, told, answer);
    note(told.finish ? `Ended: ${ENDS[told.finish] ?? told.finish}.` : "");
  } catch (error) {
    if (running.signal.aborted) note("Stopped.");
    else if (error instanceof ApiError && error.wantsKey) askForKey(error.message, send);
    else note(error instanceof ApiError ? error.message : "The connection to the gateway was lost.", true);
  } finally {
    running = null;
    busy(false);
    figures(told);
  }
}

const ENDS = { stop: "the model was done", length: "as many tokens as asked for", tool_calls: "the model calls a tool" };

function takeEvent(event, told, answer) {
  if (event.usage) told.prompt = event.usage.prompt_tokens;
  const choice = event.choices?.[0];
  if (!choice) return;
  const now = performance.now();
  const n = choice.token_ids?.length ?? 0;
  const text = choice.text ?? choice.delta?.content ?? "";
  const thought = choice.delta?.reasoning_content ?? "";
  if (choice.finish_reason) told.finish = choice.finish_reason;
  if (!n && !text && !thought) return;
  const gap = now - told.last;
  if (told.first === null) told.first = gap;
  else gaps.push(gap);
  told.last = now;
  told.tokens += n;
  const late = gaps.length > 8 && gap > LATE * mean(gaps);
  const atEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 30;
  const title = told.tokens === n ? `first token after ${msText(gap)}` : `${msText(gap)} after the one before`;
  answer.append(element("span", { class: `token${late ? " late" : ""}${thought ? " thought" : ""}`, title }, thought + text));
  if (atEnd) answer.scrollTop = answer.scrollHeight;
  drawGaps();
  figures(told);
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function median(values) {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

function figures({ begun = 0, first = null, last = 0, tokens = 0, prompt = null }) {
  const streamed = last - begun - (first ?? 0);
  const entries = [
    ["First token", first === null ? "–" : msText(first)],
    ["Median gap", gaps.length ? msText(median(gaps)) : "–"],
    ["Longest gap", gaps.length ? msText(Math.max(...gaps)) : "–"],
    ["Tokens", tokens ? count(tokens) : "–"],
    ["Speed", tokens > 1 && streamed > 0 ? `${count(((tokens - 1) / streamed) * 1000)} tok/s` : "–"],
    ["Prompt", prompt === null ? "–" : `${count(prompt)} tokens`],
  ];
  byId("prompt-figures").replaceChildren(...entries.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  byId("gaps").setAttribute("aria-label", gaps.length ? `Gap before each token: median ${msText(median(gaps))}, longest ${msText(Math.max(...gaps))}` : "Gap before each token");
}

function drawGaps() {
  const canvas = byId("gaps");
  const context = fitted(canvas);
  if (!context) return;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  context.fillStyle = colour("line");
  context.fillRect(0, height - 1, width, 1);
  const shown = gaps.slice(-Math.floor(width / 3));
  if (!shown.length) return;
  const most = Math.max(...shown);
  const step = Math.min(9, Math.max(3, width / shown.length));
  const typical = mean(gaps);
  shown.forEach((gap, i) => {
    context.fillStyle = colour(gap > LATE * typical ? "warn" : "accent");
    const tall = Math.max(1.5, (gap / most) * (height - 16));
    context.fillRect(i * step, height - 1 - tall, step - 1, tall);
  });
  context.fillStyle = colour("ink-faint");
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "top";
  context.fillText(`gap before each piece, tallest ${msText(most)}`, 0, 0);
}

function busy(is) {
  byId("prompt-send").disabled = is;
  byId("prompt-stop").disabled = !is;
  byId("answer").setAttribute("aria-busy", is);
}

function note(text, bad = false) {
  byId("prompt-said").textContent = text;
  byId("prompt-said").classList.toggle("bad", bad);
}
