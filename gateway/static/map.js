// The swarm: who holds which layers, how many hold each, how far they are apart, and how busy they are.

export function nameOf(node, peer = "") {
  const agent = node?.agent?.split("/")[1];
  return agent && !/^\d/.test(agent) ? agent : "…" + (node?.peer ?? peer).slice(-6);
}

function element(kind, text = "", name = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

const MOST_LINKED = 8;

export class SwarmMap {
  constructor(into, links, state) {
    this.into = into;
    this.links = links;
    this.state = state;
    this.nodes = new Map();
    this.colours = new Map();
    this.busy = new Map();
  }

  node(peer) {
    return this.nodes.get(peer);
  }

  colour(peer) {
    if (!this.colours.has(peer)) this.colours.set(peer, this.colours.size % 8);
    return `var(--n${this.colours.get(peer)})`;
  }

  show(swarm, now) {
    const nodes = [...swarm.nodes].sort((a, b) => first(a) - first(b) || nameOf(a).localeCompare(nameOf(b)));
    for (const node of nodes) {
      this.nodes.set(node.peer, node);
      this.colour(node.peer);
      node.share = this.share(node, now);
    }
    const sessions = nodes.reduce((most, node) => Math.max(most, node.sessions ?? 0), 0);
    this.state.textContent = nodes.length ? `${sessions} ${sessions === 1 ? "session rides" : "sessions ride"} now` : "";
    this.into.replaceChildren(...swarm.models.flatMap((model) => this.model(model, nodes)));
    this.links.replaceChildren(...this.distances(nodes.filter((node) => !node.silent)));
  }

  // The part of the time since the last look that the engine was at work.
  share(node, now) {
    const busy = node.engine?.busy_s;
    const before = this.busy.get(node.peer);
    if (busy !== undefined && busy !== before?.busy) this.busy.set(node.peer, { busy, now });
    if (busy === undefined || !before || now <= before.now) return null;
    return Math.min(1, Math.max(0, (busy - before.busy) / (now - before.now)));
  }

  model(model, nodes) {
    const least = Math.min(...model.replicas);
    const name = element("p", "", "model-name");
    const verdict = model.ready ? (least > 1 ? `every layer ${least}×` : "every layer held") : `${model.replicas.filter((n) => !n).length} of ${model.replicas.length} layers missing`;
    name.append(element("span", model.model), element("span", verdict));
    const cover = element("div", "", "cover");
    cover.setAttribute("role", "img");
    cover.setAttribute("aria-label", `${model.replicas.length} layers of ${model.model}: ${verdict}`);
    model.replicas.forEach((count, layer) => {
      const cell = element("i");
      cell.dataset.replicas = String(Math.min(3, count));
      cell.title = `layer ${layer}: ${count} ${count === 1 ? "node" : "nodes"}`;
      cover.append(cell);
    });
    const holders = nodes.filter((node) => node.services.some((service) => service.revision === model.revision));
    return [name, cover, ...holders.map((node) => this.holder(node, model))];
  }

  holder(node, model) {
    const root = element("div", "", "node");
    root.dataset.state = node.silent ? "silent" : node.state;
    const name = element("div", "", "name");
    const free = node.services.filter((service) => service.revision === model.revision).map((service) => thousands(service.kv_free));
    const state = node.silent ? "does not answer" : node.state === "serving" ? `KV free ${free.join(" ")}` : node.state;
    name.append(element("b", nameOf(node)), element("span", node.peer.slice(-8), "peer"), element("span", state, "state"));
    const bar = element("div", "", "span");
    const services = node.services.filter((service) => service.revision === model.revision);
    for (const service of services) {
      const part = element("i", `${service.start}–${service.end - 1}`, service.shadow ? "shadow" : "");
      part.style.left = (100 * service.start) / service.layers + "%";
      part.style.width = (100 * (service.end - service.start)) / service.layers + "%";
      part.style.background = this.colour(node.peer);
      bar.append(part);
    }
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", "layers " + services.map((s) => `${s.start} to ${s.end - 1}`).join(", "));
    root.append(name, bar, this.load(node, services));
    return root;
  }

  load(node, services) {
    const line = element("div", "", "load");
    const facts = [
      ["distance", node.rtt_s === null ? "–" : ms(node.rtt_s)],
      ["token", services.map((service) => ms(service.decode_s)).join(" ")],
      ["busy", node.share === null || node.silent ? "–" : Math.round(100 * node.share) + " %"],
      ["sessions", String(node.sessions ?? services.reduce((sum, service) => sum + service.sessions, 0))],
    ];
    for (const [what, value] of facts) {
      const fact = element("span", what + " ");
      fact.append(element("b", value));
      line.append(fact);
    }
    return line;
  }

  distances(nodes) {
    if (nodes.length < 2 || nodes.length > MOST_LINKED) return [];
    const table = element("table", "", "links");
    table.append(element("caption", "round trips between nodes, ms"));
    const head = table.createTHead().insertRow();
    head.append(element("th"), ...nodes.map((node) => heading(nameOf(node), "col")));
    const body = table.createTBody();
    for (const from of nodes) {
      const row = body.insertRow();
      row.append(heading(nameOf(from), "row"));
      for (const to of nodes) {
        const rtt = from === to ? undefined : (from.links?.[to.peer] ?? to.links?.[from.peer]);
        const cell = row.insertCell();
        cell.textContent = from === to ? "" : rtt === undefined ? "–" : (rtt * 1e3).toFixed(rtt < 0.01 ? 1 : 0);
        if (rtt !== undefined) cell.style.background = `color-mix(in srgb, var(--rider) ${Math.min(60, 6 + 9 * Math.log2(1 + rtt * 1e3))}%, transparent)`;
      }
    }
    return [table];
  }
}

function heading(text, scope) {
  const made = element("th", text);
  made.scope = scope;
  return made;
}

function first(node) {
  return Math.min(...node.services.map((service) => service.start), 1e9);
}

function ms(seconds) {
  const value = seconds * 1e3;
  return (value < 10 ? value.toFixed(1) : Math.round(value)) + " ms";
}

function thousands(count) {
  return count >= 1000 ? Math.round(count / 1000) + "k" : String(count);
}
