// The conversation: sends it, streams the answer, and comes back for the rest where the connection breaks.

const at = (id) => document.getElementById(id);
const RETRIES = 4;

export class Chat {
  constructor(settings, ring) {
    this.settings = settings;
    this.ring = ring;
    this.messages = [];
    this.stopping = null;
    at("compose").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.stopping) this.stop();
      else this.send(at("prompt").value);
    });
    at("prompt").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.stopping) this.send(at("prompt").value);
      }
    });
    at("prompt").addEventListener("input", grow);
    at("ideas").addEventListener("click", (event) => {
      if (event.target.tagName === "BUTTON") this.send(event.target.textContent);
    });
    at("fresh").addEventListener("click", () => this.fresh());
  }

  stop() {
    this.stopping?.abort();
  }

  fresh() {
    this.stop();
    this.messages = [];
    for (const turn of document.querySelectorAll(".turn")) turn.remove();
    at("hello").hidden = false;
    at("fresh").hidden = true;
    at("prompt").focus();
  }

  async send(text) {
    if (!text.trim() || this.stopping) return;
    at("prompt").value = "";
    grow();
    at("hello").hidden = true;
    at("fresh").hidden = false;
    this.messages.push({ role: "user", content: text });
    turn("user").said.textContent = text;
    const answer = turn("model");
    answer.root.classList.add("live");
    render(answer.said, "");
    this.stopping = new AbortController();
    busy(true);
    const told = await this.answer(answer, this.stopping.signal);
    this.stopping = null;
    busy(false);
    answer.root.classList.remove("live");
    render(answer.said, told.text);
    answer.meta.replaceChildren(...account(told));
    if (told.error) trouble(answer, told.error);
    if (told.text) this.messages.push({ role: "assistant", content: told.text });
    else this.messages.pop();
    follow(true);
  }

  async answer(shown, signal) {
    const { model, system, temperature, tokens, headers } = this.settings();
    const messages = system ? [{ role: "system", content: system }, ...this.messages] : this.messages;
    const told = { text: "", tokens: 0, began: performance.now(), first: 0, last: 0, id: "", event: -1, failovers: [], finish: "" };
    const body = { model, messages, temperature, max_tokens: tokens, stream: true, stream_options: { include_usage: true }, paceline_events: true };
    const ask = { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body), signal };
    this.ring.begin();
    try {
      let response = await fetch("v1/chat/completions", ask);
      for (let tries = 0; ; tries++) {
        if (!response.ok) throw new Error((await response.json()).error.message);
        told.id = response.headers.get("x-paceline-stream") ?? told.id;
        if (await this.read(response, told, shown)) break;
        if (tries === RETRIES) throw new Error("the connection broke, again and again");
        response = await this.back(told, headers, signal);
      }
    } catch (error) {
      if (error.name === "AbortError") told.finish = "stopped by you";
      else told.error = error.message;
    }
    this.ring.end(told);
    return told;
  }

  // The rest of a broken stream, after the last token seen.
  async back(told, headers, signal) {
    for (let tries = 0; ; tries++) {
      await new Promise((done) => setTimeout(done, 250 * 2 ** tries));
      try {
        return await fetch("paceline/streams/" + told.id, { headers: { ...headers, "last-event-id": String(told.event) }, signal });
      } catch (error) {
        if (error.name === "AbortError" || tries === RETRIES) throw error;
      }
    }
  }

  // True where the answer has ended, false where the connection has.
  async read(response, told, shown) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        return false;
      }
      if (part.done) return false;
      const blocks = (rest + part.value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) if (this.event(block, told)) return true;
      render(shown.said, told.text);
      shown.meta.replaceChildren(...account(told));
      follow(false);
    }
  }

  event(block, told) {
    const id = /^id: (\d+)$/m.exec(block);
    const data = /^data: (.*)$/m.exec(block);
    if (!data) return false;
    if (data[1] === "[DONE]") return true;
    const chunk = JSON.parse(data[1]);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.paceline) {
      told.failovers = chunk.paceline.failovers;
      this.ring.ride(chunk.paceline);
    }
    if (chunk.usage) told.tokens = chunk.usage.completion_tokens;
    for (const choice of chunk.choices) {
      told.text += choice.delta.content ?? "";
      told.finish = choice.finish_reason ?? told.finish;
    }
    if (id && Number(id[1]) > told.event) {
      told.event = Number(id[1]);
      told.tokens = told.event + 1;
      told.last = performance.now();
      told.first ||= told.last;
      this.ring.token(told, chunk.timings);
    }
    return false;
  }
}

export function speed(told) {
  const spent = (told.last - told.first) / 1000;
  return told.tokens > 1 && spent > 0 ? (told.tokens - 1) / spent : 0;
}

function account(told) {
  const parts = [];
  if (told.tokens) parts.push([told.tokens + (told.tokens === 1 ? " token" : " tokens")]);
  if (speed(told)) parts.push([speed(told).toFixed(1) + " tokens/s"]);
  if (told.first) parts.push(["first after " + ((told.first - told.began) / 1000).toFixed(2) + " s"]);
  if (told.failovers.length) parts.push([told.failovers.length + (told.failovers.length === 1 ? " failover" : " failovers") + ", no token lost", "mended"]);
  const why = { length: "cut at the longest answer", stop: "" }[told.finish] ?? told.finish;
  if (why) parts.push([why]);
  return parts.map(([text, kind]) => element("span", text, kind));
}

// --- the page ----------------------------------------------------------------------------------------------------

function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function turn(who) {
  const root = element("article", "", "turn " + who);
  root.setAttribute("aria-label", who === "user" ? "You" : "Model");
  const said = element("div", "", "said");
  const meta = element("div", "", "meta");
  root.append(said, meta);
  at("log").append(root);
  follow(true);
  return { root, said, meta };
}

function trouble(answer, text) {
  const note = element("p", text, "trouble");
  note.setAttribute("role", "alert");
  answer.root.insertBefore(note, answer.meta);
}

// Text with code fences, `code` and **bold**; everything else is shown as the model wrote it.
function render(into, text) {
  const parts = text.split(/^```.*$/m);
  const blocks = [];
  parts.forEach((part, index) => {
    if (index % 2) {
      const block = element("pre");
      block.append(element("code", part.replace(/^\n|\n$/g, "")));
      blocks.push(block);
    } else {
      for (const paragraph of part.split(/\n{2,}/)) if (paragraph.trim()) blocks.push(inline(paragraph.replace(/^\n+|\n+$/g, "")));
    }
  });
  into.replaceChildren(...(blocks.length ? blocks : [element("p")]));
}

function inline(text) {
  const made = element("p");
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (/^`.+`$/.test(part)) made.append(element("code", part.slice(1, -1)));
    else if (/^\*\*.+\*\*$/.test(part)) made.append(element("strong", part.slice(2, -2)));
    else if (part) made.append(part);
  }
  return made;
}

function follow(always) {
  const log = at("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTo({ top: log.scrollHeight, behavior: "instant" });
}

function busy(on) {
  const button = at("send");
  button.toggleAttribute("data-busy", on);
  button.setAttribute("aria-label", on ? "Stop" : "Send");
  button.title = on ? "Stop (Esc)" : "Send (Enter)";
}

function grow() {
  const box = at("prompt");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + "px";
}
