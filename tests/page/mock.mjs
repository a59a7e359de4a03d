// A server that speaks the interface of `emend serve` without a model, to try the page on:
//   node mock.mjs [--port 8499] [--token T] [--no-editors] [--no-chat] [--slow MS] [--harm]
// It binds to loopback only. What it says is made up; edits live in memory.
import { createServer } from "node:http";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const flag = (name) => process.argv.includes(`--${name}`);
const option = (name, otherwise) => (flag(name) ? process.argv[process.argv.indexOf(`--${name}`) + 1] : otherwise);
const PORT = Number(option("port", 8499)), TOKEN = option("token", null), SLOW = Number(option("slow", 25));
const PAGE = option("page", fileURLToPath(new URL("page.html", import.meta.url)));
const BASE = "mock-135m";
const EDITORS = flag("no-editors") ? [] : [
  { name: "rome", method: "rome", needs_subject: true, description: "configs/rome.toml" },
  { name: "mend-135m", method: "mend", needs_subject: false, description: "archives/mend-135m" },
];
const WORDS = [" the", " river", ",", " and", "\n", "\n\n", " city", " of", " <b>bold</b>", ".", "  ", "\t", " Paris", " was", " built", "é", " 東京", " &amp;", "\u200b", " in", " 1889"];

const edits = [];
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
function hash(text) {
  let h = 2166136261;
  for (const letter of text) h = Math.imul(h ^ letter.codePointAt(0), 16777619) >>> 0;
  return h;
}

class Refusal extends Error {
  constructor(status, message, param = null) { super(message); Object.assign(this, { status, param }) }
  json() {
    const type = this.status === 404 ? "not_found" : this.status === 429 ? "overloaded" : this.status >= 500 ? "server_error" : "invalid_request_error";
    return { error: { message: this.message, type, param: this.param, code: null } };
  }
}

function stack(name) {
  const [model, ...ids] = String(name).split("+");
  if (model !== BASE) throw new Refusal(404, `there is no model "${name}"; there is ${BASE}`, "model");
  return ids.map((id) => find(id.replace(/(\.edit)?(\.safetensors)?$/, "")));
}
function find(id) {
  const edit = edits.find((edit) => edit.id === id);
  if (!edit) throw new Refusal(404, `there is no edit "${id}"`);
  return edit;
}

/** Tokens that a stack says, each with its log-probability and the likeliest others. */
function* say(laid, prompt, most) {
  const edit = laid.findLast((edit) => prompt.includes(edit.requests[0].prompt));
  for (let i = 0; i < most; i++) {
    const h = hash(prompt + i);
    const token = i === 0 ? (edit ? " " + edit.requests[0].target_new : " Paris") : WORDS[h % WORDS.length];
    const p = 0.02 + 0.97 * ((h >>> 8) % 1000) / 1000;
    const top = { [token]: Math.log(p) };
    for (let k = 1; k < 5; k++) top[WORDS[(h + k * 5) % WORDS.length]] ??= Math.log((1 - p) / (k + 2));
    yield { token, logprob: Math.log(p), top };
  }
}

async function generate(chat, body, response) {
  const laid = stack(body.model);
  if (chat && flag("no-chat")) throw new Refusal(400, "the tokenizer has no chat template; ask /v1/completions", "messages");
  const prompt = chat ? body.messages.at(-1).content : body.prompt;
  const object = chat ? "chat.completion.chunk" : "text_completion";
  if (body.max_tokens > 512) throw new Refusal(400, `"max_tokens" is ${body.max_tokens}; it should be a whole number from 1 to 512`, "max_tokens");
  if (!body.stream) return json(response, 200, { id: "x", object, choices: [{ index: 0, text: "", message: {}, finish_reason: "length" }] });
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const chunk = (choice) => response.write(`data: ${JSON.stringify({ id: "x", object, model: body.model, choices: [choice] })}\n\n`);
  for (const { token, logprob, top } of say(laid, prompt, body.max_tokens)) {
    if (response.destroyed) return;
    await wait(SLOW);
    if (prompt.includes("BREAK")) { response.end(`data: ${JSON.stringify(new Refusal(500, "the answer broke off; the server says more in its log").json())}\n\n`); return }
    if (chat) {
      const top_logprobs = Object.entries(top).map(([token, logprob]) => ({ token, logprob, bytes: null }));
      chunk({ index: 0, delta: { content: token }, logprobs: { content: [{ token, logprob, bytes: null, top_logprobs }] }, finish_reason: null });
    } else {
      chunk({ index: 0, text: token, logprobs: { tokens: [token], token_logprobs: [logprob], top_logprobs: [top], text_offset: [0] }, finish_reason: null });
    }
  }
  chunk(chat ? { index: 0, delta: {}, logprobs: null, finish_reason: "length" } : { index: 0, text: "", logprobs: null, finish_reason: "length" });
  response.end("data: [DONE]\n\n");
}

async function edit(body, response, streamed) {
  const editor = EDITORS.find((editor) => editor.name === body.editor);
  if (!editor) throw new Refusal(404, `there is no editor "${body.editor}"`, "editor");
  if (!body.prompt || !body.target_new) throw new Refusal(400, "the body: \"prompt\" or \"target_new\" is missing");
  let free = 1;
  while (edits.some((edit) => edit.id === `${editor.name}-${free}`)) free++;
  const id = body.id ?? `${editor.name}-${free}`;
  if (edits.some((edit) => edit.id === id)) throw new Refusal(409, `there is an edit "${id}" already; give another "id", or take that one out first`, "id");
  const tell = (name, data) => streamed && response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  if (streamed) response.writeHead(200, { "Content-Type": "text/event-stream" });
  const stages = ["queued", ...Array(6).fill("editing"), "saving", "scoring"];
  for (const [i, stage] of stages.entries()) {
    const step = stage === "editing" ? i : null;
    tell("progress", { stage, step, of: step && 6, seconds: i * 0.1 });
    await wait(SLOW * 4);
  }
  if (body.prompt.includes("FAIL")) { tell("error", new Refusal(400, "the subject's last token is not found in the prompt").json()); response.end(); return }
  const said = (answer, p) => ({ answer, target_probability: p });
  const probes = [{ kind: "rewrite", prompt: body.prompt, target: body.target_new, before: said("Paris, the capital", 0.00004), after: said(`${body.target_new}, where it`, 0.9731) }];
  (body.rephrases ?? []).forEach((prompt, i) => probes.push({ kind: "rephrase", prompt, target: body.target_new, before: said("Paris", 0.0021), after: i % 2 ? said("the north of France", 0.31) : said(body.target_new, 0.61) }));
  (body.locality ?? []).forEach((prompt, i) => probes.push({ kind: "locality", prompt, target: null, before: said("Paris.", null), after: said(i % 2 ? body.target_new : "Paris.", null) }));
  const ratio = flag("harm") ? 1.34 : 1.004;
  const made = {
    id, method: editor.method, requests: [{ prompt: body.prompt, target_new: body.target_new, subject: body.subject ?? null }],
    created: Math.floor(Date.now() / 1000), bytes: 3541224, on: true, change: "weights",
    report: { probes, perplexity: { before: 21.43, after: 21.43 * ratio, ratio }, seconds: 0.8 },
    computed_on: edits.filter((edit) => edit.on).map((edit) => edit.id),
  };
  edits.push(made);
  if (streamed) { tell("done", made); response.end() } else json(response, 201, made);
}

function json(response, status, value) {
  response.writeHead(status, { "Content-Type": "application/json" });
  response.end(JSON.stringify(value));
}

async function answer(request, response) {
  const { method } = request, path = new URL(request.url, "http://localhost").pathname;
  let text = "";
  for await (const part of request) text += part;
  if (path === "/") {
    response.writeHead(200, {
      "Content-Type": "text/html; charset=utf-8",
      "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    });
    return response.end(readFileSync(PAGE));
  }
  if (path === "/health") return json(response, 200, { status: "ok", model: BASE, edits: edits.length, running: 0, waiting: 0 });
  if (TOKEN && request.headers.authorization !== `Bearer ${TOKEN}`) throw new Refusal(401, "the token is missing or wrong: send \"Authorization: Bearer TOKEN\" with the one of --token");
  let body = null;
  if (text) try { body = JSON.parse(text) } catch { throw new Refusal(400, "the body is not JSON") }
  if (path === "/v1/models") {
    const ids = [BASE, ...edits.map((edit) => `${BASE}+${edit.id}`)];
    return json(response, 200, { object: "list", data: ids.map((id) => ({ id, object: "model", created: 0, owned_by: "emend" })) });
  }
  if (path === "/editors") return json(response, 200, { editors: EDITORS });
  if (path === "/v1/completions") return generate(false, body, response);
  if (path === "/v1/chat/completions") return generate(true, body, response);
  if (path === "/edits" && method === "GET") return json(response, 200, { edits });
  if (path === "/edits" && method === "POST") return edit(body, response, request.headers.accept?.includes("text/event-stream"));
  const [, id, file] = path.match(/^\/edits\/([^/]+)(\/file)?$/)?.map(decodeURIComponent) ?? [];
  if (!id) throw new Refusal(404, "there is nothing at this address");
  const found = find(id);
  if (file !== "undefined" && file) {
    response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Disposition": `attachment; filename="${id}.edit.safetensors"` });
    return response.end(Buffer.alloc(2000, 7));
  }
  if (method === "PATCH") { found.on = body.on; return json(response, 200, found) }
  if (method === "DELETE") {
    const above = edits.find((edit) => edit !== found && id.startsWith("needed") && edit.computed_on.includes(id));
    if (above) throw new Refusal(409, `the edit "${above.id}" is computed on "${id}"; take that one out first`);
    edits.splice(edits.indexOf(found), 1);
    response.writeHead(204);
    return response.end();
  }
  throw new Refusal(405, "this address takes other methods");
}

createServer((request, response) => {
  answer(request, response).catch((problem) => {
    if (!(problem instanceof Refusal)) console.error(problem);
    const refusal = problem instanceof Refusal ? problem : new Refusal(500, "the server met an error of its own");
    if (response.headersSent) response.destroy();
    else json(response, refusal.status, refusal.json());
  });
}).listen(PORT, "127.0.0.1", () => console.log(`http://127.0.0.1:${PORT}`));
