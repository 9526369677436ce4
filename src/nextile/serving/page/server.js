// The server asked: JSON and streams of events, and what went wrong in words.

let key = null; // of this page alone, where the browser has not asked for it itself

/** The key that is sent from now on. */
export function useKey(given) {
  key = given;
}

/** What the server refused, or why it was not reached. `wait`: seconds that it asks to wait, or null. */
export class Refusal extends Error {
  constructor(message, status = 0, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

const WORDS = {
  401: "The server asks for its key.",
  403: "The server does not answer under this name.",
  429: "The server has as many requests as it takes.",
  503: "The server is closing down, or its engine stands still.",
};

async function refusal(answer) {
  const said = await answer.json().then(
    (body) => body?.error?.message,
    () => null,
  );
  const seconds = Number.parseFloat(answer.headers.get("Retry-After"));
  const wait = Number.isFinite(seconds) ? Math.min(Math.max(seconds, 0), 600) : answer.status === 429 ? 1 : null;
  const words = [WORDS[answer.status], answer.status === 401 ? null : said].filter(Boolean).join(" ");
  return new Refusal(words || `The server answered ${answer.status}.`, answer.status, wait);
}

async function request(path, body, signal) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key !== null) headers.Authorization = `Bearer ${key}`;
  const method = body === undefined ? "GET" : "POST";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal }).catch((error) => {
    throw error.name === "AbortError" ? error : new Refusal("The server does not answer: is it still running?");
  });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** The answer's JSON; of a body it is a POST. Errors: Refusal, AbortError. */
export async function ask(path, body, signal) {
  const answer = await request(path, body, signal);
  return answer.json().catch((error) => {
    throw error.name === "AbortError" ? error : new Refusal("The answer broke off.");
  });
}

async function* lines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Refusal("The answer broke off: the server is gone.");
    });
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/** The events of a stream, each as its JSON. Errors: Refusal, also where the stream ends early; AbortError. */
export async function* events(path, body, signal) {
  const answer = await request(path, { ...body, stream: true }, signal);
  for await (const line of lines(answer.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refusal(event.error.message, event.error.code === 429 ? 429 : 500);
    yield event;
  }
  throw new Refusal("The answer broke off before its end.");
}

// --- the same by curl ---------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const PICTURE = /data:image\/[a-z+]+;base64,[A-Za-z0-9+/=]+/g;

/** The command that asks the same; a picture in it is read from a file. */
export function curl(path, body) {
  const url = new URL(path, document.baseURI).href;
  const given = key === null ? "" : ' \\\n  -H "Authorization: Bearer $NEXTILE_API_KEY"';
  const data = quoted(JSON.stringify(body)).replace(PICTURE, `data:image/png;base64,'"$(base64 -w0 picture.png)"'`);
  return `curl ${url}${given} \\\n  -H 'Content-Type: application/json' \\\n  -d ${data}`;
}
