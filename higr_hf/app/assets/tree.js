// A tree of semantic IDs after the WAI-ARIA tree pattern: one tab stop, arrow keys inside, a level fetched when it is
// opened. `element`, `props`, `server` and `watch` come from gradio. Labels are set as text, never as HTML.
const tree = element.querySelector("[role=tree]");
const status = element.querySelector("[role=status]");

const PAGE = 100; // nodes shown of a level before a person asks for more

function text(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = content;
  return node;
}

function startsWith(codes, prefix) {
  return prefix.every((code, level) => codes[level] === code);
}

function mark(item) {
  const prefix = JSON.parse(item.dataset.prefix);
  const marks = (props.value && props.value.marks) || [];
  const kinds = new Set(marks.filter((entry) => startsWith(entry.codes, prefix)).map((entry) => entry.kind));
  const place = item.querySelector(":scope > .sid-row > .marks");
  place.replaceChildren(...["history", "slate"].filter((kind) => kinds.has(kind)).map((kind) => {
    return text("span", `mark ${kind}`, kind);
  }));
}

function build(node, level, position, size) {
  const item = document.createElement("li");
  item.setAttribute("role", "treeitem");
  item.setAttribute("aria-level", level);
  item.setAttribute("aria-posinset", position);
  item.setAttribute("aria-setsize", size);
  item.dataset.prefix = JSON.stringify(node.prefix);
  item.tabIndex = -1;
  const row = document.createElement("div");
  row.className = "sid-row";
  row.append(text("code", "", node.token));
  if (node.item_id === null) {
    item.setAttribute("aria-expanded", "false");
    row.append(text("span", "count", `${node.items} items`));
  } else {
    item.classList.add("leaf");
  }
  row.append(text("span", "marks", ""));
  row.append(text("span", node.item_id === null ? "examples" : "title", node.label));
  if (node.categories) row.append(text("span", "about", node.categories));
  if (node.removed) row.append(text("span", "removed", node.items === 1 ? "removed" : `${node.removed} removed`));
  item.append(row);
  mark(item);
  return item;
}

function fill(group, nodes, level, from = 0) {
  const rest = nodes.slice(from, from + PAGE);
  group.append(...rest.map((node, index) => build(node, level, from + index + 1, nodes.length)));
  if (from + PAGE >= nodes.length) return;
  const more = document.createElement("li");
  more.setAttribute("role", "treeitem");
  more.setAttribute("aria-level", level);
  more.className = "more";
  more.tabIndex = -1;
  more.append(text("div", "sid-row", `Show ${Math.min(PAGE, nodes.length - from - PAGE)} more`));
  more.open = () => {
    more.remove();
    fill(group, nodes, level, from + PAGE);
    focus(group.children[from + PAGE]);
  };
  group.append(more);
}

async function expand(item) {
  if (item.getAttribute("aria-expanded") !== "false" || item.getAttribute("aria-busy") === "true") return;
  let group = item.querySelector(":scope > ul");
  if (!group) {
    item.setAttribute("aria-busy", "true");
    try {
      const nodes = await server.branch(JSON.parse(item.dataset.prefix));
      group = document.createElement("ul");
      group.setAttribute("role", "group");
      fill(group, nodes, Number(item.getAttribute("aria-level")) + 1);
      item.append(group);
      status.textContent = "";
    } catch (error) {
      status.textContent = "This branch could not be read: is the server still running?";
      return;
    } finally {
      item.removeAttribute("aria-busy");
    }
  }
  item.setAttribute("aria-expanded", "true");
}

function collapse(item) {
  if (item.getAttribute("aria-expanded") === "true") item.setAttribute("aria-expanded", "false");
}

function visible() {
  return [...tree.querySelectorAll("[role=treeitem]")].filter((item) => {
    return !item.parentElement.closest("[aria-expanded=false]");
  });
}

function focus(item) {
  if (!item) return;
  tree.querySelectorAll("[tabindex='0']").forEach((other) => (other.tabIndex = -1));
  item.tabIndex = 0;
  item.focus();
}

function activate(item) {
  if (item.open) item.open();
  else if (item.getAttribute("aria-expanded") === "true") collapse(item);
  else expand(item);
}

tree.addEventListener("click", (event) => {
  const item = event.target.closest(".sid-row") && event.target.closest("[role=treeitem]");
  if (!item) return;
  focus(item);
  activate(item);
});

tree.addEventListener("keydown", async (event) => {
  const item = event.target.closest("[role=treeitem]");
  if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
  const shown = visible();
  const at = shown.indexOf(item);
  const keys = {
    ArrowDown: () => focus(shown[at + 1]),
    ArrowUp: () => focus(shown[at - 1]),
    Home: () => focus(shown[0]),
    End: () => focus(shown[shown.length - 1]),
    Enter: () => activate(item),
    " ": () => activate(item),
    ArrowRight: () => {
      if (item.getAttribute("aria-expanded") === "true") focus(item.querySelector(":scope > ul > [role=treeitem]"));
      else expand(item);
    },
    ArrowLeft: () => {
      if (item.getAttribute("aria-expanded") === "true") collapse(item);
      else focus(item.parentElement.closest("[role=treeitem]"));
    },
  };
  if (!(event.key in keys)) return;
  event.preventDefault();
  await keys[event.key]();
});

async function show(codes) {
  let item = null;
  for (let depth = 1; depth <= codes.length; depth += 1) {
    const group = item ? item.querySelector(":scope > ul") : tree;
    const prefix = JSON.stringify(codes.slice(0, depth));
    let next = null;
    while (!(next = [...group.children].find((child) => child.dataset.prefix === prefix))) {
      const more = group.querySelector(":scope > .more");
      if (!more) return;
      more.open();
    }
    item = next;
    if (item.classList.contains("leaf")) break;
    await expand(item);
  }
  tree.querySelectorAll(".found").forEach((other) => other.classList.remove("found"));
  item.classList.add("found");
  focus(item);
  item.scrollIntoView({ block: "center" });
}

const finder = element.querySelector("form");
finder.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await server.locate(finder.querySelector("input").value);
  status.textContent = answer.message;
  if (answer.codes) await show(answer.codes);
});

fill(tree, props.value.roots, 1);
tree.querySelector("[role=treeitem]").tabIndex = 0;
watch("value", () => tree.querySelectorAll("[data-prefix]").forEach(mark));
