// Wires the page: settings, tabs, colours, and one look at the swarm every second.

import { Chat } from "./chat.js";
import { SwarmMap, nameOf } from "./map.js";
import { Ring } from "./ring.js";

const at = (id) => document.getElementById(id);
const kept = { get: (name) => localStorage.getItem("paceline." + name), set: (name, value) => localStorage.setItem("paceline." + name, value) };

// --- settings --------------------------------------------------------------------------------------------------

for (const name of ["model", "system", "temperature", "tokens", "key"]) {
  const field = at(name);
  if (name !== "model" && kept.get(name) !== null) field.value = kept.get(name);
  field.addEventListener("change", () => {
    kept.set(name, field.value);
    if (name === "key") look();
  });
}
at("settings-open").addEventListener("click", () => at("settings").showModal());
at("settings").addEventListener("click", (event) => {
  if (event.target === at("settings")) at("settings").close();
});

function settings() {
  const number = (id, fallback) => (Number.isFinite(at(id).valueAsNumber) ? at(id).valueAsNumber : fallback);
  return {
    model: at("model").value,
    system: at("system").value.trim(),
    temperature: Math.max(0, number("temperature", 0.6)),
    tokens: Math.max(1, Math.round(number("tokens", 256))),
    headers: at("key").value ? { authorization: "Bearer " + at("key").value } : {},
  };
}

function offerModels(models) {
  const names = [...new Set(models.map((model) => model.model))];
  const select = at("model");
  if (names.join() === [...select.options].map((option) => option.value).join()) return;
  const chosen = select.value || kept.get("model");
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
}

// --- colours and tabs ------------------------------------------------------------------------------------------

const THEMES = ["system", "light", "dark"];
function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const said = "Colours: " + (name === "system" ? "as the system" : name);
  at("theme").setAttribute("aria-label", said);
  at("theme").title = said;
  kept.set("theme", name);
}
theme(kept.get("theme") ?? "system");
at("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(kept.get("theme")) + 1) % 3]));

const tabs = [at("tab-chat"), at("tab-swarm")];
function show(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  document.body.dataset.tab = tab.getAttribute("aria-controls");
}
for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs[1 - tabs.indexOf(tab)];
    show(other);
    other.focus();
  });
}

// --- the swarm -------------------------------------------------------------------------------------------------

const map = new SwarmMap(at("map"), at("links"), at("map-state"));
const ring = new Ring((peer) => nameOf(map.node(peer), peer), (peer) => map.colour(peer));
const chat = new Chat(settings, ring);

function health(state, text) {
  at("health").dataset.state = state;
  if (at("health-text").textContent !== text) at("health-text").textContent = text;
}

function tell(swarm) {
  const ready = swarm.models.filter((model) => model.ready);
  const nodes = swarm.nodes.filter((node) => !node.silent).length;
  const many = nodes + (nodes === 1 ? " node" : " nodes");
  at("tab-count").textContent = "· " + nodes;
  if (!swarm.nodes.length) health("bad", "the swarm is empty");
  else if (!ready.length) health("bad", many + " · layers are missing");
  else health("good", many + " · " + ready.map((model) => model.model).join(", "));
}

async function look() {
  try {
    const response = await fetch("paceline/swarm", { headers: settings().headers });
    if (response.status === 401) {
      health("bad", "an API key is needed: see Settings");
      return;
    }
    if (!response.ok) throw new Error("status " + response.status);
    const swarm = await response.json();
    map.show(swarm, performance.now() / 1000);
    ring.refresh();
    offerModels(swarm.models);
    tell(swarm);
    at("join").textContent = swarm.join || "nobody says where to join";
    at("join-copy").disabled = !swarm.join;
  } catch {
    health("bad", "the gateway does not answer");
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((done) => setTimeout(done, 1000));
  }
}
watch();

at("join-copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(at("join").textContent);
    at("join-note").textContent = "Copied. Paste it into a terminal on another machine.";
  } catch {
    getSelection().selectAllChildren(at("join"));
    at("join-note").textContent = "Selected: copy it with the keyboard.";
  }
});

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "Escape" && !at("settings").open) chat.stop();
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    show(tabs[0]);
    at("prompt").focus();
  }
});
