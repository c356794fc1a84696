// The page: sessions, one of them in full, and how the engine is.
//
// Comes in: the server's JSON and its stream of events. Goes out: text, never markup: whatever came
// from a stream is set as textContent. The key lives in this tab alone.

const $ = (id) => document.getElementById(id);
const LOOK_MS = 2000;
const POINTS = 90;
const KEY = "jaxstate-key";

const state = {
  current: null, // the session that is shown
  watching: null, // ends its stream of events
  sessions: [],
  latency: [],
  idle: [],
  before: null, // the engine's figures of the last look
  flashes: new Map(),
};

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// --- the server ---

async function call(method, path, body, options = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const content = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(path, { method, headers, body: content, ...options });
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // it was no JSON: the status says it
  }
  if (response.status === 401) askForKey(key ? message : "");
  throw new Refused(response.status, message);
}

const get = async (path) => (await call("GET", path)).json();
const post = async (path, body) => (await call("POST", path, body)).json();
const one = (id) => `/v1/sessions/${encodeURIComponent(id)}`;

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const event = { name: "message", data: "" };
      for (const line of frame.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
      }
      if (event.data && event.data !== "[DONE]") yield { ...event, data: JSON.parse(event.data) };
    }
  }
}

// --- what is shown ---

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(error) {
  $("error").hidden = !error;
  $("error").textContent = error ? error.message : "";
}

async function attempt(work, button) {
  if (button) button.disabled = true;
  try {
    await work();
    say(null);
  } catch (error) {
    say(error);
  } finally {
    if (button) button.disabled = false;
  }
}

const seconds = (value) => (value < 10 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`);
const count = (value) => value.toLocaleString("en");

function showSessions() {
  $("no-sessions").hidden = state.sessions.length > 0;
  const list = $("sessions");
  const known = new Map([...list.children].map((item) => [item.dataset.id, item]));
  for (const session of state.sessions) {
    let item = known.get(session.id);
    if (!item) {
      item = element("li");
      item.dataset.id = session.id;
      const button = element("button");
      button.type = "button";
      button.append(element("span", session.id), element("small"));
      button.addEventListener("click", () => choose(session.id));
      item.append(button);
      list.append(item);
    }
    known.delete(session.id);
    const lag = session.lag_s > 0 ? `, ${seconds(session.lag_s)} behind` : "";
    const small = item.querySelector("small");
    small.textContent =
      `version ${count(session.data_version)}${lag}, ${count(session.tokens)} cells, ` +
      session.residency;
    item.firstChild.setAttribute("aria-current", String(session.id === state.current));
  }
  for (const item of known.values()) item.remove();
}

function showFacts(session) {
  const facts = {
    version: count(session.data_version),
    "not read yet": `${count(session.pending)} entries`,
    lag: seconds(session.lag_s),
    cells: `${count(session.tokens)} of ${count(session.cells)}`,
    "cells are": session.residency,
    answered: `${count(session.turns)} questions`,
  };
  if (session.window_spec) {
    const parts = Object.entries(session.window_spec).filter(([, value]) => value !== null);
    facts.window = parts.map(([name, value]) => `${name} ${value}`).join(", ");
  }
  if (session.dropped) facts.dropped = `${count(session.dropped)} entries`;
  if (session.stopped) facts.stopped = session.stopped;
  $("facts").replaceChildren(
    ...Object.entries(facts).map(([name, value]) => {
      const box = element("div");
      box.append(element("dt", name), element("dd", value));
      return box;
    }),
  );
}

function flashItem(query) {
  let item = state.flashes.get(query.id);
  if (item) return item;
  item = element("li");
  item.dataset.id = query.id;
  const remove = element("button", "Remove");
  remove.type = "button";
  remove.setAttribute("aria-label", `Remove: ${query.query}`);
  remove.addEventListener("click", () =>
    attempt(async () => {
      await call("DELETE", `${one(state.current)}/flash/${query.id}`);
      await lookAtFlashes();
    }, remove),
  );
  item.append(
    element("span", query.query, "query"),
    element("span", "…", "value"),
    element("span", "", "state"),
    remove,
  );
  state.flashes.set(query.id, item);
  $("flashes").append(item);
  return item;
}

function showAnswer(query, fresh) {
  const item = flashItem(query);
  const value = item.querySelector(".value");
  if (query.value !== undefined && value.textContent !== query.value) {
    value.textContent = query.value;
    item.classList.remove("changed");
    void item.offsetWidth; // so that the animation begins anew
    item.classList.add("changed");
  }
  const share = query.probability === undefined ? "" : `, ${Math.round(query.probability * 100)} %`;
  const at = query.data_version === undefined ? "" : `version ${count(query.data_version)}${share}`;
  const behind = fresh || query.data_version === undefined ? "" : ", being answered anew";
  item.querySelector(".state").textContent = query.error || `${at}${behind}`;
}

async function lookAtFlashes() {
  const id = state.current;
  const listed = await get(`${one(id)}/flash`);
  if (id !== state.current) return;
  const there = new Set(listed.data.map((query) => query.id));
  for (const [key, item] of state.flashes) {
    if (!there.has(key)) {
      item.remove();
      state.flashes.delete(key);
    }
  }
  for (const query of listed.data) showAnswer(query, query.fresh);
}

async function lookAtEntries() {
  const id = state.current;
  const newest = await get(`${one(id)}/entries?last=50`);
  if (id !== state.current) return;
  $("entries").replaceChildren(
    ...newest.data.reverse().map((entry) => {
      const item = element("li");
      item.append(element("span", count(entry.number)), element("span", entry.text));
      return item;
    }),
  );
}

// --- one session ---

function choose(id) {
  if (state.watching) state.watching.abort();
  state.current = id;
  state.flashes.clear();
  for (const list of ["flashes", "answers", "entries"]) $(list).replaceChildren();
  $("session").hidden = id === null;
  $("choose").hidden = id !== null;
  $("session-name").textContent = id ?? "";
  showSessions();
  if (id === null) return;
  location.hash = encodeURIComponent(id);
  state.watching = new AbortController();
  watch(id, state.watching.signal);
}

async function watch(id, signal) {
  let pauseMs = 500;
  while (!signal.aborted) {
    try {
      showFacts(await get(one(id)));
      await lookAtFlashes();
      await lookAtEntries();
      const response = await call("GET", `${one(id)}/events?flash=always`, undefined, { signal });
      pauseMs = 500;
      for await (const event of eventsOf(response)) {
        if (event.name === "flash_ready") showAnswer(event.data, true);
        if (event.name === "data_updated") soon(id);
        if (event.name === "closed") break;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 404) return choose(null);
      if (error.status === 401) return;
    }
    await new Promise((done) => setTimeout(done, pauseMs));
    pauseMs = Math.min(pauseMs * 2, 10000);
  }
}

let waiting = false;
// Looks at a session a moment after something happened in it, and not for each thing that did.
function soon(id) {
  if (waiting) return;
  waiting = true;
  setTimeout(async () => {
    waiting = false;
    if (id !== state.current) return;
    try {
      showFacts(await get(one(id)));
      await Promise.all([lookAtEntries(), lookAtFlashes()]);
    } catch {
      // the next look finds out
    }
  }, 200);
}

$("create").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const id = $("new-id").value.trim();
    const made = await post("/v1/sessions", id ? { id } : {});
    $("new-id").value = "";
    await look();
    choose(made.id);
    $("data").focus();
  }, event.submitter);
});

$("push").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await post(`${one(state.current)}/push`, { data: $("data").value });
    $("data").value = "";
  }, event.submitter);
});

$("flash").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await post(`${one(state.current)}/flash`, { query: $("flash-query").value });
    $("flash-query").value = "";
    await lookAtFlashes();
  }, event.submitter);
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  const item = element("li");
  const value = element("div", "", "value");
  const line = element("div", "…", "state");
  item.append(element("div", prompt, "query"), value, line);
  $("answers").prepend(item);
  $("prompt").value = "";
  attempt(async () => {
    const began = performance.now();
    const body = { prompt, stream: true };
    try {
      const response = await call("POST", `${one(state.current)}/generate`, body);
      for await (const { data } of eventsOf(response)) {
        if (data.error) throw new Refused(0, data.error.message);
        if (data.text !== undefined) value.textContent += data.text;
        if (data.done) {
          const ms = performance.now() - began;
          const how = data.source === "computed" ? "computed" : "was there already";
          line.textContent = `version ${count(data.data_version)}, ${how}, ${ms.toFixed(0)} ms`;
        }
      }
    } catch (error) {
      line.textContent = error.message;
      line.className = "state error";
      throw error;
    }
  }, event.submitter);
});

// --- the engine ---

function plot(svg, points, least, most) {
  const shown = points.filter((value) => value !== null);
  const top = most ?? Math.max(1e-9, ...shown) * 1.1;
  svg.setAttribute("viewBox", "0 0 100 100");
  svg.setAttribute("preserveAspectRatio", "none");
  const line = svg.firstElementChild ??
    svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", "polyline"));
  const places = points.map((value, place) => {
    if (value === null) return "";
    const x = (100 * (POINTS - points.length + place)) / (POINTS - 1);
    return `${x.toFixed(2)},${(97 - (94 * (value - least)) / (top - least)).toFixed(2)}`;
  });
  line.setAttribute("points", places.filter(Boolean).join(" "));
}

function remember(points, value) {
  points.push(value);
  if (points.length > POINTS) points.shift();
}

function showEngine(metrics) {
  const before = state.before;
  state.before = metrics;
  if (!before || metrics.elapsed_s <= before.elapsed_s) return;
  const idle = 1 - (metrics.busy_s - before.busy_s) / (metrics.elapsed_s - before.elapsed_s);
  remember(state.idle, Math.min(1, Math.max(0, idle)));
  // Of computed answers alone: those that were there already take no time worth a plot.
  const now = metrics.ask_latency_s.computed;
  const then = before.ask_latency_s.computed;
  const asked = now.count - then.count;
  remember(state.latency, asked ? (1000 * (now.total - then.total)) / asked : null);
  plot($("idle"), state.idle, 0, 1);
  plot($("latency"), state.latency, 0);
  $("idle-now").textContent = `${Math.round(100 * state.idle.at(-1))} %`;
  const last = state.latency.filter((value) => value !== null).at(-1);
  $("latency-now").textContent = last === undefined ? "" : last.toFixed(last < 10 ? 1 : 0);
}

// --- looking again and again ---

async function look() {
  const [overview, sessions] = await Promise.all([get("/v1/overview"), get("/v1/sessions")]);
  $("login").hidden = true;
  $("layout").hidden = false;
  $("forget").hidden = !sessionStorage.getItem(KEY);
  $("engine").hidden = !overview.operator;
  state.sessions = sessions.data;
  showSessions();
  const many = sessions.data.length === 1 ? "1 session" : `${sessions.data.length} sessions`;
  $("status").textContent = `${overview.model}, ${many}`;
  document.title = `jaxstate: ${overview.model}`;
  if (overview.metrics) showEngine(overview.metrics);
  const shown = sessions.data.find((session) => session.id === state.current);
  if (shown) showFacts(shown);
  else if (state.current !== null) choose(null);
}

async function keepLooking() {
  for (;;) {
    try {
      await look();
      const wanted = decodeURIComponent(location.hash.slice(1));
      if (state.current === null && state.sessions.some((one) => one.id === wanted)) choose(wanted);
    } catch (error) {
      $("status").textContent = error.status === 503 ? error.message : `no answer: ${error.message}`;
    }
    await new Promise((done) => setTimeout(done, LOOK_MS));
    while (document.hidden || !$("login").hidden) {
      await new Promise((done) => setTimeout(done, LOOK_MS / 4));
    }
  }
}

function askForKey(message) {
  if (state.watching) state.watching.abort();
  $("login").hidden = false;
  $("layout").hidden = true;
  $("login-error").textContent = message;
  $("status").textContent = "this server needs a key";
  $("key").focus();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  $("key").value = "";
  look()
    .then(() => state.current && choose(state.current))
    .catch((error) => {
      $("login-error").textContent = error.message;
    });
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  askForKey("");
});

keepLooking();
