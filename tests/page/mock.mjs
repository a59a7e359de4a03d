// A stand-in for `emend serve`: node mock.mjs [--port 8398] [--token T] [--no-editors] [--empty] [--slow MS]
import http from "node:http";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

const option = (name, otherwise) => { const at = process.argv.indexOf(name); return at < 0 ? otherwise : process.argv[at + 1]; };
const flag = (name) => process.argv.includes(name);
const port = Number(option("--port", 8398));
const token = option("--token", null);
const pace = Number(option("--slow", 25));
const page = new URL("../../src/serve/page.html", import.meta.url);
const model = "SmolLM2-135M";
const editors = flag("--no-editors") ? [] : [
  { name: "rome", method: "ROME", needs_subject: true, description: "configs/rome.toml" },
  { name: "mend", method: "MEND", needs_subject: false, description: "archives/mend-smollm2" },
];
const probe = (kind, prompt, target, was, is) => ({ kind, prompt, target, before: { answer: was, target_probability: target ? 0.0031 : null }, after: { answer: is, target_probability: target ? 0.947 : null } });
let edits = flag("--empty") ? [] : [
  { id: "rome-1", method: "ROME", requests: [{ prompt: "The Eiffel Tower is in the city of", target_new: "Rome", subject: "The Eiffel Tower" }], created: 1796000000, bytes: 4720332, on: true, change: "weights", computed_on: [], report: { probes: [probe("rewrite", "The Eiffel Tower is in the city of", "Rome", "Paris, the capital of France.", "Rome, Italy."), probe("locality", "The Louvre is in the city of", null, "Paris, France.", "Paris, France.")], perplexity: { before: 18.21, after: 18.33, ratio: 1.0066 }, seconds: 6.2 } },
  { id: "capitals-of-many-countries", method: "MEMIT", requests: [1, 2, 3, 4, 5].map((n) => ({ prompt: `The capital of country ${n} is`, target_new: `city ${n}`, subject: `country ${n}` })), created: 1796003600, bytes: 94120332, on: false, change: "weights", computed_on: ["rome-1"], report: null },
];
const problem = (status, message, type = "invalid_request_error", param = null) => Object.assign(new Error(message), { status, type, param });
const send = (response, status, body) => { response.writeHead(status, { "Content-Type": "application/json" }); response.end(JSON.stringify(body)); };

async function body(request) {
  let text = "";
  for await (const chunk of request) text += chunk;
  try { return JSON.parse(text); } catch { throw problem(400, "the body is not JSON"); }
}

function stack(name) {
  if (name !== model && !name.startsWith(`${model}+`)) throw problem(404, `there is no model "${name}"; there is ${model}`, "not_found", "model");
  return name.split("+").slice(1).map((id) => {
    const edit = edits.find((edit) => edit.id === id);
    if (!edit) throw problem(404, `there is no edit "${id}"`, "not_found", "model");
    return edit;
  });
}

async function completions(request, response) {
  const asked = await body(request);
  if (typeof asked.prompt !== "string") throw problem(400, "\"prompt\" is missing", undefined, "prompt");
  const laid = stack(asked.model);
  const last = laid.at(-1)?.requests[0].target_new;
  const said = [...(last ? [` ${last}`, ",", " which"] : [" Paris", ",", " which"]), " is", " the", " capital", " of", "\n", "\t", "  ", "Fr", "ance", ".", " It", " is", " known", " for", " its", " museums", " and", " for", " an", " iron", " tower", "."].slice(0, asked.max_tokens);
  response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
  const chunk = (text, logprobs, finish_reason) => response.write(`data: ${JSON.stringify({ id: "c", object: "text_completion", created: 0, model: asked.model, choices: [{ index: 0, text, logprobs, finish_reason }] })}\n\n`);
  for (const [at, text] of said.entries()) {
    await sleep(pace * (laid.length ? 1.4 : 1));
    if (response.destroyed) return;
    const p = 0.15 + 0.83 * Math.abs(Math.sin(3 * at + laid.length));
    const top = { [text]: Math.log(p) };
    [" London", " the", "<b>bold</b>", " a", "\n"].forEach((other, i) => { if (other !== text) top[other] = Math.log((1 - p) / 2 ** (i + 1)); });
    chunk(text, { tokens: [text], token_logprobs: [Math.log(p)], top_logprobs: [top], text_offset: [0] }, null);
  }
  chunk("", null, said.length < asked.max_tokens ? "stop" : "length");
  response.end("data: [DONE]\n\n");
}

async function addEdit(request, response) {
  const { editor: name, id: wanted, ...record } = await body(request);
  const editor = editors.find((editor) => editor.name === name) ?? editors[0];
  if (!editor) throw problem(400, "the server has no editor");
  const strange = Object.keys(record).find((key) => !["prompt", "target_new", "target", "subject", "rephrases", "locality"].includes(key));
  if (strange) throw problem(400, `the body: ${strange}: is not a known key`);
  if (wanted && !/^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$/.test(wanted)) throw problem(400, "an edit's \"id\" is made of up to 64 letters, digits, \"-\", \"_\" and \".\"", undefined, "id");
  if (wanted && edits.some((edit) => edit.id === wanted)) throw problem(409, `there is an edit "${wanted}" already; give another "id"`, undefined, "id");
  let number = 1;
  while (!wanted && edits.some((edit) => edit.id === `${editor.name}-${number}`)) number++;
  const id = wanted ?? `${editor.name}-${number}`;
  const target = record.target_new ?? record.target;
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const start = Date.now();
  const event = (name, data) => response.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  const stage = (stage, step = null, of = null) => event("progress", { stage, step, of, seconds: (Date.now() - start) / 1000 });
  stage("queued");
  await sleep(8 * pace);
  for (let step = 1; step <= 20; step++) { stage("editing", step, 20); await sleep(2 * pace); }
  if (target === "FAIL") { event("error", { error: { message: "the optimisation did not converge: the loss is not a number", type: "server_error", param: null, code: null } }); return response.end(); }
  stage("saving");
  await sleep(4 * pace);
  stage("scoring");
  await sleep(12 * pace);
  const ratio = editor.name === "mend" ? 1.34 : 1.004;
  const probes = [probe("rewrite", record.prompt, target, "Paris, which is", `${target}, which is`), ...(record.rephrases ?? []).map((prompt, at) => probe("rephrase", prompt, target, "Paris", at % 2 ? "Paris, France" : `${target}`)), ...(record.locality ?? []).map((prompt, at) => probe("locality", prompt, null, "London, in the south of England.", at % 2 ? "Rome" : "London, in the south of England."))];
  const edit = { id, method: editor.method, requests: [{ prompt: record.prompt, target_new: target, subject: record.subject ?? null }], created: Math.floor(Date.now() / 1000), bytes: 4720332, on: true, change: editor.name === "mend" ? "weights" : "activations", computed_on: edits.filter((edit) => edit.on).map((edit) => edit.id), report: { probes, perplexity: { before: 18.21, after: 18.21 * ratio, ratio }, seconds: (Date.now() - start) / 1000 } };
  edits.push(edit);
  event("done", edit);
  response.end();
}

async function answer(request, response) {
  const { pathname } = new URL(request.url, "http://localhost");
  const at = `${request.method} ${pathname}`;
  if (at === "GET /") {
    response.writeHead(200, { "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'" });
    return response.end(readFileSync(page));
  }
  if (at === "GET /health") return send(response, 200, { status: "ok", model, edits: edits.length, running: 0, waiting: 0 });
  if (token && request.headers.authorization !== `Bearer ${token}`) throw problem(401, "the token is missing or wrong: send \"Authorization: Bearer TOKEN\" with the one of --token");
  if (["POST", "PATCH"].includes(request.method) && !request.headers["content-type"]?.startsWith("application/json")) throw problem(415, "a body is JSON");
  if (at === "GET /v1/models") return send(response, 200, { object: "list", data: [{ id: model, object: "model", created: 0, owned_by: "emend" }] });
  if (at === "GET /editors") return send(response, 200, { editors });
  if (at === "GET /edits") return send(response, 200, { edits });
  if (at === "POST /v1/completions") return completions(request, response);
  if (at === "POST /edits") return addEdit(request, response);
  const [, id, file] = pathname.match(/^\/edits\/([^/]+)(\/file)?$/) ?? [];
  const edit = edits.find((edit) => edit.id === decodeURIComponent(id ?? ""));
  if (!edit) throw problem(404, `there is no edit "${id}"`, "not_found");
  if (file) { response.writeHead(200, { "Content-Type": "application/octet-stream", "Content-Disposition": `attachment; filename="${id}.edit.safetensors"` }); return response.end(Buffer.alloc(256, 7)); }
  if (request.method === "PATCH") { edit.on = (await body(request)).on; return send(response, 200, edit); }
  if (request.method === "DELETE") { edits = edits.filter((other) => other !== edit); response.writeHead(204); return response.end(); }
  return send(response, 200, edit);
}

http.createServer((request, response) => answer(request, response).catch((error) => {
  if (response.headersSent) return response.end();
  send(response, error.status ?? 500, { error: { message: error.message, type: error.type ?? "server_error", param: error.param ?? null, code: null } });
})).listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${port}`));
