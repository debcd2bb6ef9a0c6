// The gateway's HTTP API, with the key of this tab. The page may stand behind a prefix: addresses are relative to it.

const KEY = "expertmesh-key";
const BASE = new URL("..", document.baseURI);

/** What the gateway refused, in its own words. */
export class ApiError extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }

  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Sends a request; throws ApiError unless it is answered with success. */
export async function call(path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(new URL(path, BASE), {
    method: body === undefined ? "GET" : "POST",
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
  if (!response.ok) throw await refusal(response);
  return response;
}

export const postJson = async (path, body) => (await call(path, { body })).json();

/** Lines of a streamed body, as they come. */
export async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The data of server-sent events, up to [DONE]; throws ApiError for an error among them. */
export async function* events(response) {
  for await (const text of lines(response)) {
    if (!text.startsWith("data: ")) continue;
    const data = text.slice(6).trim();
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(500, event.error.message, event.error.param);
    yield event;
  }
}

async function refusal(response) {
  let message = `${response.status} ${response.statusText}`.trim();
  let param = null;
  try {
    const { error } = await response.json();
    if (error?.message) ({ message, param } = error);
  } catch {
    // Not the gateway's own words: a proxy's page, perhaps.
  }
  return new ApiError(response.status, message, param);
}
