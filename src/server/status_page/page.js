// The status page: polls /status, draws it, and chats through the public API. No state outlives the page.
"use strict";

const POLL_MS = 1000;
const SAMPLES = 61;
const at = (id) => document.getElementById(id);
const say = (id, text) => { if (at(id).textContent !== text) at(id).textContent = text; };

let key = "";
let serves = false;
let before = null;
let rates = [];
let conversation = [];
let answering = null;

const headers = () => (key ? { authorization: `Bearer ${key}` } : {});

/* Figures */

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${count.toFixed(unit && count < 100 ? 1 : 0)} ${units[unit]}`;
}

const number = (count) => count.toLocaleString("en");
const milliseconds = (ms) => (ms < 10 ? ms.toFixed(1) : number(Math.round(ms)));

function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, parts.findIndex(([size]) => seconds >= size));
  const shown = parts.slice(first < 0 ? 3 : first, first + 2).map(([size, unit], index) => {
    const count = Math.floor((index ? seconds % parts[first][0] : seconds) / size);
    return count || !index ? `${count} ${unit}` : "";
  });
  return shown.filter(Boolean).join(" ");
}

function list(id, rows) {
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const text = JSON.stringify(known);
  if (at(id).dataset.shown === text) return;
  at(id).dataset.shown = text;
  at(id).replaceChildren(...known.flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    return [term, detail];
  }));
}

/* The figure with its unit in smaller type. */
function figure(id, value, unit) {
  const small = document.createElement("small");
  small.textContent = unit;
  at(id).replaceChildren(value, " ", small);
}

function sparkline() {
  const top = Math.max(1, ...rates) * 1.15;
  const from = SAMPLES - rates.length;
  const points = rates.map((rate, index) => `${from + index},${(20 - (rate / top) * 18 - 1).toFixed(2)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  at("line").setAttribute("d", line);
  at("area").setAttribute("d", line ? `${line}L60,20L${from},20Z` : "");
}

/* Means of what happened between two samples. */
function mean(now, then) {
  const count = now.count - then.count;
  return count > 0 ? ((now.sum - then.sum) / count) * 1000 : null;
}

function drawStats(stats, now) {
  if (before) {
    const seconds = (now - before.now) / 1000;
    const rate = Math.max(0, (stats.tokens_generated - before.stats.tokens_generated) / seconds);
    rates = [...rates, rate].slice(-SAMPLES);
    say("rate", rate >= 10 || rate === 0 ? number(Math.round(rate)) : rate.toFixed(1));
    say("rate-note", `${number(Math.round(Math.max(...rates)))} at most in a minute`);
    sparkline();
    const first = mean(stats.time_to_first_token, before.stats.time_to_first_token);
    const next = mean(stats.inter_token_latency, before.stats.inter_token_latency);
    if (first !== null) figure("first", milliseconds(first), "ms");
    if (next !== null) say("first-note", `${milliseconds(next)} ms between tokens`);
  } else if (stats.time_to_first_token.count) {
    figure("first", milliseconds(mean(stats.time_to_first_token, { sum: 0, count: 0 })), "ms");
    say("first-note", "on average so far");
  } else {
    say("first", "–");
    say("first-note", "no request yet");
  }
  before = { now, stats };
  const share = stats.kv_blocks_used / Math.max(1, stats.kv_blocks_total);
  const percent = share * 100;
  figure("cache", percent > 0 && percent < 10 ? percent.toFixed(1) : percent.toFixed(0), "%");
  at("cache-bar").style.flexBasis = `${percent}%`;
  at("cache-meter").setAttribute("aria-valuenow", percent.toFixed(0));
  say("cache-note", `${number(stats.kv_blocks_used)} of ${number(stats.kv_blocks_total)} blocks`);
  const found = stats.prefix_cache_hits / Math.max(1, stats.prefix_cache_queries);
  const ended = Object.entries(stats.requests).filter(([, count]) => count > 0);
  const lost = ended.filter(([outcome]) => ["error", "timeout"].includes(outcome));
  const sum = (entries) => entries.reduce((all, [, count]) => all + count, 0);
  list("counts", [
    ["Requests", number(sum(ended))],
    ["Failed", number(sum(lost))],
    ["Tokens generated", number(stats.tokens_generated)],
    ["Prompt tokens", number(stats.prompt_tokens)],
    ["Found cached", stats.prefix_cache_queries ? `${(found * 100).toFixed(0)} %` : null],
    ["Preemptions", number(stats.preemptions)],
  ]);
}

const NOTICES = {
  loading: "The model is being loaded. The page goes on by itself.",
  draining: "The worker is draining: running requests finish, new ones are refused.",
  degraded: "A request failed for want of cache. The worker serves on.",
  unreachable: "The worker does not answer. The page tries again every second.",
};

function drawStatus(report) {
  const state = report.status;
  serves = state === "healthy" || state === "degraded";
  at("state").dataset.state = state;
  say("state", state[0].toUpperCase() + state.slice(1));
  const notice = report.fault || NOTICES[state] || "";
  at("notice").hidden = !notice;
  at("notice").classList.toggle("bad", state === "unhealthy" || state === "unreachable");
  say("notice", notice);
  ready();
}

function draw(report) {
  drawStatus(report);
  document.title = report.model ? `${report.model} – worker-orcd` : "worker-orcd";
  say("model", report.model || "worker-orcd");
  say("what", [report.quant_kind, report.device || report.backend].filter(Boolean).join(" on ") || "No model yet");
  const parts = ["weights", "kv_cache", "activations", "workspace"];
  parts.forEach((part, index) => {
    const count = report.vram_bytes[part] || 0;
    say(part, report.model ? bytes(count) : "–");
    at("memory-bar").children[index].style.flexBasis = `${(count / Math.max(1, report.vram_bytes_used)) * 100}%`;
  });
  say("memory", report.model ? bytes(report.vram_bytes_used) : "–");
  list("facts", [
    ["Backend", report.backend],
    ["Device", report.device],
    ["Compute capability", report.sm && `${report.sm.slice(0, -1)}.${report.sm.slice(-1)}`],
    ["CUDA driver", report.cuda_driver_version],
    ["Resident", report.model ? (report.resident ? "yes" : "no") : null],
    ["Quantisation", report.quant_kind],
    ["Context", report.context_length && `${number(report.context_length)} tokens`],
    ["Vocabulary", report.vocab_size && number(report.vocab_size)],
    ["Tokenizer", report.tokenizer_kind],
    ["Worker", report.worker_id],
    ["Version", report.version],
    ["Up for", duration(report.uptime_seconds)],
  ]);
  figure("running", number(report.requests_running), "running");
  say("waiting", report.requests_waiting ? `${number(report.requests_waiting)} waiting` : "none waiting");
  at("unlock").hidden = !report.locked;
  at("counts-card").hidden = !report.stats;
  if (report.stats) return drawStats(report.stats, performance.now());
  [before, rates] = [null, []];
  sparkline();
  at("cache-bar").style.flexBasis = "0";
  for (const id of ["rate", "cache", "first"]) say(id, "–");
  for (const id of ["rate-note", "cache-note", "first-note"]) say(id, report.locked ? "needs a key" : "\u00a0");
}

async function poll() {
  try {
    const answer = await fetch("status", { headers: headers(), cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    draw(await answer.json());
  } catch {
    before = null;
    drawStatus({ status: "unreachable" });
  }
  setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
}

/* Chat */

function ready() {
  const locked = !at("unlock").hidden;
  const possible = serves && !locked && at("prompt").value.trim() !== "";
  say("send", answering ? "Stop" : "Send");
  at("send").classList.toggle("stop", Boolean(answering));
  at("send").disabled = !answering && !possible;
}

function message(role, text) {
  at("empty").hidden = true;
  const whole = document.createElement("div");
  whole.className = `message ${role}`;
  const name = document.createElement("span");
  name.className = "unseen";
  name.textContent = role === "user" ? "You: " : "Model: ";
  const body = document.createElement("div");
  body.className = "text";
  body.textContent = text;
  whole.append(name, body);
  at("log").append(whole);
  at("log").scrollTop = at("log").scrollHeight;
  return whole;
}

function reasoning(whole) {
  const found = whole.querySelector("details p");
  if (found) return found;
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  const text = document.createElement("p");
  details.className = "reasoning";
  summary.textContent = "Reasoning";
  details.open = true;
  details.append(summary, text);
  whole.querySelector(".text").before(details);
  return text;
}

function foot(whole, text, fault) {
  const line = document.createElement("p");
  line.className = fault ? "foot fault" : "foot";
  line.textContent = text;
  whole.append(line);
}

/* Yields the data of each event of a stream. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  return body?.error?.message || `The worker answered ${answer.status}.`;
}

/* Streams one answer into its message; what it said. */
async function stream(whole, request, signal) {
  const began = performance.now();
  const answer = await fetch("v1/chat/completions", {
    method: "POST", signal, body: JSON.stringify(request),
    headers: { "content-type": "application/json", ...headers() },
  });
  if (!answer.ok) throw new Error(await refusal(answer));
  const text = whole.querySelector(".text");
  let said = "", first = null, usage = null, reason = null;
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    usage = chunk.usage || usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    reason = choice.finish_reason || reason;
    const { content, reasoning_content: thought } = choice.delta;
    const log = at("log");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    if (content || thought) first ??= performance.now();
    if (thought) reasoning(whole).textContent += thought;
    if (content) {
      if (!said) whole.querySelector("details")?.removeAttribute("open");
      said += content;
      text.textContent = said;
    }
    if (follows) log.scrollTop = log.scrollHeight;
  }
  const seconds = (performance.now() - (first ?? began)) / 1000;
  const count = usage?.completion_tokens ?? 0;
  const pace = count > 1 ? `, ${((count - 1) / Math.max(seconds, 1e-3)).toFixed(1)} per second` : "";
  const cut = reason === "length" ? ", cut at the limit" : "";
  const start = first ? `, first after ${milliseconds(first - began)} ms` : "";
  foot(whole, `${number(count)} tokens${start}${pace}${cut}`);
  return said;
}

async function ask(text) {
  conversation.push({ role: "user", content: text });
  message("user", text);
  const whole = message("assistant", "");
  const mine = conversation;
  whole.classList.add("live");
  at("log").setAttribute("aria-busy", "true");
  answering = new AbortController();
  ready();
  const request = {
    messages: mine, stream: true, stream_options: { include_usage: true },
    temperature: Number(at("temperature").value), max_tokens: Number(at("most").value),
  };
  try {
    mine.push({ role: "assistant", content: await stream(whole, request, answering.signal) });
  } catch (error) {
    const stopped = error.name === "AbortError";
    const said = whole.querySelector(".text").textContent;
    if (stopped && said) mine.push({ role: "assistant", content: said });
    else mine.pop();
    foot(whole, stopped ? "Stopped." : error.message, !stopped);
  }
  whole.classList.remove("live");
  at("log").setAttribute("aria-busy", "false");
  at("log").scrollTop = at("log").scrollHeight;
  answering = null;
  ready();
}

function grow() {
  const area = at("prompt");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

at("compose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (answering) return answering.abort();
  const text = at("prompt").value.trim();
  if (!text || at("send").disabled) return;
  at("prompt").value = "";
  grow();
  ask(text);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!answering) at("compose").requestSubmit();
});
at("prompt").addEventListener("input", () => { grow(); ready(); });
at("clear").addEventListener("click", () => {
  answering?.abort();
  conversation = [];
  at("empty").hidden = false;
  at("log").replaceChildren(at("empty"));
  at("prompt").focus();
});
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
});
poll();
