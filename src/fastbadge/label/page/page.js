// The page: a strip of items, each there once, one of them current; and the clicks made here, which
// say what the answers are. The strip grows at its end as the server hands out items; answering moves
// on to the next one that has no answer. One item is shown, or the twelve of the strip among which the
// current one is.

import { Outbox, Refused, ask, uuid } from "./outbox.js";
import { count, element, showDoubts, showNumbers } from "./numbers.js";

const IN_HAND = 8; // items that are here before they are shown, the current one included
const TILES = 12;
const TINY_PIXELS = 96; // smaller images show their pixels
const LEASE_SECONDS = 600;
const RESERVED = "gstu";
const NO_GUESS = "The model has no guess for this one.";
const LEFT = `fastbadge:${location.pathname}:left`;
const $ = (id) => document.getElementById(id);

let project = { name: "", kind: "images", overlap: 1, classes: [] };
let annotator = remembered("fastbadge:annotator") || `annotator-${uuid().slice(0, 4)}`;
let untouched = !remembered("fastbadge:annotator"); // nothing of the annotator's can be taken back
let strip = []; // items
let at = 0;
let clicks = []; // that stand, in order: { item: id, request, kind, label, over: asked again since }
let grid = remembered("fastbadge:view") === "grid";
let choosing = true;
let summary = null;
let doubts = null;
let looking = false; // for doubts
let shown = performance.now();
let seen = Date.now(); // when the server last said that the items here are ours
const guesses = new Map(); // by item: names of classes, null for none, if they were asked for
const images = new Map(); // by item: elements, so that what was fetched is there at once
const unseen = new Set(); // items whose images could not be shown when last tried
const banner = { connection: "", notice: "", trouble: "" };
const timers = {};

function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Then it is forgotten with the page.
  }
}

const current = () => strip[at];
const wanted = () => (grid ? TILES : IN_HAND);
const outbox = new Outbox({ n: wanted, answered, refused, changed: showConnection });
const firstTile = () => at - (at % TILES);
const isShown = (i) => (grid ? i >= firstTile() && i < firstTile() + TILES : i === at);
const placeOf = (id) => strip.findIndex((item) => item.id === id);
const answers = () => new Map(clicks.map((click) => [click.item, click.over ? undefined : click]));
const nameOf = (label) => project.classes.find(({ id }) => id === label)?.name ?? "";

function inWords(answer) {
  return answer.kind === "label" ? nameOf(answer.label) : answer.kind === "skip" ? "skipped" : "cannot tell";
}

// --- answers

function answer(kind, label = null) {
  const item = current();
  if (!item) return;
  const before = answers().get(item.id);
  if (before && before.kind === kind && before.label === label) return step(1);
  const seconds = Math.round(performance.now() - shown) / 1000;
  const request = outbox.add("clicks", {
    annotator, item: item.id, kind, seconds, ...(kind === "label" ? { label } : {}),
  });
  clicks.push({ item: item.id, request, kind, label });
  untouched = false;
  goTo(firstOpen(at));
}

// The next item without an answer, on from i and then from the start; the end where there is none.
function firstOpen(i) {
  const said = answers();
  const later = strip.findIndex(({ id }, j) => j > i && !said.get(id));
  if (later >= 0) return later;
  const any = strip.findIndex(({ id }) => !said.get(id));
  return any >= 0 ? any : strip.length;
}

function goTo(i) {
  const held = document.activeElement?.classList.contains("tile");
  at = Math.max(0, Math.min(i, strip.length));
  shown = performance.now();
  for (const [id, made] of images) if (made.matches(".lost")) images.delete(id); // tried again
  render();
  if (held) $("stage").querySelector("[aria-current]")?.focus({ preventScroll: true });
}

function step(by) {
  if (by > 0 && !grid && current() && !answers().get(current().id)) return answer("skip");
  if (grid && at + by >= strip.length) return;
  goTo(at + by);
}

// Takes back the latest click of this page; of the annotator where there is none, as after a reload.
function undo() {
  const click = clicks.pop();
  if (click && placeOf(click.item) >= 0) goTo(placeOf(click.item));
  outbox.add("undo", { annotator, click: click?.request ?? null });
  say("Taking the latest click back.");
}

// --- what the server says

function answered(entry, { items, choosing: more, undone }) {
  const { item, kind, label, click } = entry.body;
  if (entry.body.annotator !== annotator) return; // another has sat down here since
  choosing = more;
  if (entry.path === "undo") {
    takenBack(undone, click);
  } else {
    const next = current();
    const there = next && next.id !== item ? ` Now ${described(next)}.` : "";
    say(`Saved: ${inWords({ kind, label })}.${there}`);
    soon("numbers", readNumbers, 1);
  }
  merge(items);
}

function takenBack(item, click) {
  if (!item) {
    if (click === null) untouched = true;
    render();
    return say("There is nothing to take back.");
  }
  const place = placeOf(item.id);
  say(`Taken back: ${described(item)}.`);
  if (!item.answer && !item.leased) {
    tell("notice", `Taken back, but somebody else has it now: ${described(item)}`);
    if (place >= 0) strip.splice(place, 1);
    if (place >= 0 && place < at) at -= 1;
  } else {
    const there = bring(item);
    if (place < 0 || click === null) goTo(there);
  }
}

// Where an item is in the strip, into which it is put if it is not there, with the answer that stands.
function bring(item) {
  if (item.answer && !answers().has(item.id)) clicks.unshift({ item: item.id, ...item.answer });
  if (placeOf(item.id) < 0) strip.splice(at, 0, item);
  return placeOf(item.id);
}

function refused(entry, words) {
  clicks = clicks.filter(({ request }) => request !== entry.body.request);
  tell("notice", `Not saved: ${words}`);
  render();
}

// The items that are ours now: new ones go to the end, and so do those that are asked for again, as
// after a skip; those that were given to others, because they lay here for too long, go. What is on
// the screen stays where it is.
function merge(items) {
  seen = Date.now();
  const focus = current();
  const away = outbox.items();
  const given = new Map(items.filter(({ id }) => !away.has(id)).map((item) => [item.id, item]));
  const said = answers();
  strip = strip.filter(({ id }, i) => isShown(i) || Boolean(said.get(id)) !== given.has(id));
  at = focus ? strip.indexOf(focus) : strip.length;
  for (const [id, item] of given) {
    if (said.get(id)) said.get(id).over = true;
    if (placeOf(id) < 0) strip.push(item);
  }
  if (!focus) goTo(firstOpen(at - 1));
  else render();
  soon("next", readNext, items.length >= wanted() ? 60 : choosing ? 0.6 : 5);
}

async function readNext() {
  soon("next", readNext, 60);
  if (outbox.size || document.hidden) return;
  const before = outbox.sent;
  try {
    const answer = await ask("next", { annotator, n: wanted() });
    if (outbox.sent !== before) return; // it may still hold what was answered since
    choosing = answer.choosing;
    merge(answer.items);
    showConnection(null);
  } catch (error) {
    showConnection(error);
    soon("next", readNext, 2);
  }
}

async function readNumbers() {
  soon("numbers", readNumbers, summary && !looking ? 10 : 1);
  if (document.hidden) return;
  try {
    const answer = await ask("numbers");
    if (answer.summary) {
      summary = answer.summary;
      showNumbers(summary, lookAgain);
      showProgress();
      if (!current()) renderStage();
      // Somebody else has added a class.
      if (summary.classes.some(({ name }, i) => name !== project.classes[i]?.name)) {
        project.classes = (await ask("project")).classes;
        renderClasses();
      }
    }
    doubts = answer.doubts ?? doubts;
    looking &&= !answer.doubts;
    showDoubts(doubts, looking, lookAgain, findDoubts);
    tell("trouble", answer.trouble && `No further batch: ${answer.trouble}`);
  } catch {
    // The banner tells it where it matters, with the next click.
  }
}

async function findDoubts() {
  try {
    await ask("doubts");
    [doubts, looking] = [null, true];
    readNumbers();
  } catch (error) {
    showConnection(error);
  }
}

async function lookAgain(id) {
  try {
    goTo(bring(await ask(`items/${id}?annotator=${encodeURIComponent(annotator)}`)));
    $("stage").scrollIntoView({ block: "nearest" });
  } catch (error) {
    showConnection(error);
  }
}

function soon(name, run, seconds) {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(run, 1000 * seconds);
}

// --- what is shown

function tell(what, words) {
  banner[what] = words;
  $("banner").textContent = banner.connection || banner.notice || banner.trouble;
  $("banner").hidden = !$("banner").textContent;
}

function say(words) {
  $("live").textContent = words;
}

function showConnection(error) {
  const waiting = outbox.size;
  const left = waiting ? ` ${count(waiting)} ${waiting === 1 ? "click waits" : "clicks wait"} in this browser.` : "";
  const words = !error
    ? ""
    : !(error instanceof Refused)
      ? `Not connected.${left} Trying again.`
      : error.status === 401
        ? `No access any more: open the address that the server printed.${left}`
        : error.status === 404
          ? `Another project is served here now.${left}`
          : `${error.message}.${left}`;
  tell("connection", words);
}

function described({ name, text }) {
  return project.kind === "texts" ? `text: ${text.slice(0, 300)}` : project.kind === "features" ? `row ${name}` : name;
}

function showProgress() {
  const { items, missing, labelled, cannot_tell } = summary.status;
  $("bar").max = Math.max(1, items - missing);
  $("bar").value = labelled + cannot_tell;
  $("progress").textContent = `${count(labelled)} of ${count(items - missing)} labelled`;
}

function render() {
  renderStage();
  const item = current();
  const label = item && answers().get(item.id)?.label;
  for (const button of $("classes").children) {
    button.setAttribute("aria-pressed", `${label}` === button.value);
    button.disabled = !item || unseen.has(item.id); // nobody labels what they do not see
  }
  for (const id of ["skip", "cannot", "guess"]) $(id).disabled = !item;
  $("back").disabled = at === 0;
  $("undo").disabled = untouched && !clicks.length;
  $("one").setAttribute("aria-pressed", !grid);
  $("grid").setAttribute("aria-pressed", grid);
  prefetch();
}

// What is there already stays as it is, with its focus, its scrolling and what is selected in it:
// the server is asked every few seconds, and mostly nothing has changed.
function renderStage() {
  const stage = $("stage");
  const item = current();
  const first = firstTile();
  const tiles = grid && item ? strip.slice(first, first + TILES) : [];
  const said = answers();
  stage.className = tiles.length ? "tiles" : "one";
  const nodes = tiles.length
    ? tiles.map((each, i) => tile(each, said.get(each.id), first + i === at))
    : item
      ? [content(item, true), under(item, said.get(item.id))]
      : [empty()];
  const guess = guesses.get(item?.id);
  if (guess !== undefined) {
    const words = guess === null ? [NO_GUESS] : ["The model's guess: ", element("bdi", {}, guess)];
    nodes.push(kept(`guess ${guess}`, () => element("p", { class: "guess" }, ...words)));
  }
  for (const node of [...stage.childNodes]) if (!nodes.includes(node)) node.remove();
  nodes.forEach((node, i) => {
    if (stage.childNodes[i] !== node) stage.insertBefore(node, stage.childNodes[i] ?? null);
  });
}

// The element of that key on the stage; made if it is not there.
function kept(key, make) {
  const found = [...$("stage").children].find(({ dataset }) => dataset.key === key);
  const node = found ?? make();
  node.dataset.key = key;
  return node;
}

function under(item, answer) {
  return kept(`under ${item.id} ${answer ? inWords(answer) : ""}`, () => {
    const line = element("p", { class: "under" }, element("bdi", { class: "name" }, title(item)));
    if (answer) line.append(element("span", { class: "said" }, "Your answer: ", element("bdi", {}, inWords(answer))));
    return line;
  });
}

function title(item) {
  return project.kind === "images" ? item.name : `Row ${item.name}`;
}

function tile(item, answer, isCurrent) {
  const words = answer ? inWords(answer) : "";
  const button = kept(`tile ${item.id}`, () => {
    const made = element("button", { type: "button", class: "tile" },
      content(item, false), element("span", { class: "said" }, element("bdi")));
    made.addEventListener("click", () => goTo(placeOf(item.id)));
    return made;
  });
  const [shows, line] = button.children;
  if (project.kind === "images" && shows !== image(item)) shows.replaceWith(image(item));
  if (line.textContent !== words) line.firstChild.textContent = words;
  button.setAttribute("aria-label", `${described(item)}${words && `, ${words}`}`);
  button.classList.toggle("answered", Boolean(answer));
  if (isCurrent) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
  return button;
}

function content(item, whole) {
  if (project.kind === "images") return image(item);
  return kept(`${whole ? "whole" : "part"} ${item.id}`, () => {
    if (project.kind === "features") return element("p", { class: "row" }, `Row ${item.name}`);
    const text = element(whole ? "div" : "span", { class: "text", dir: "auto" }, whole ? item.text : item.text.slice(0, 400));
    if (whole) text.tabIndex = 0; // so that a long one scrolls by the keyboard
    return text;
  });
}

function image(item) {
  let made = images.get(item.id);
  if (!made) {
    const shows = element("img", { src: `items/${item.id}/image`, alt: item.name, decoding: "async", draggable: "false" });
    made = element("span", { class: "frame" }, shows);
    shows.addEventListener("load", () => {
      const { naturalWidth: width, naturalHeight: height } = shows;
      made.style.setProperty("--ratio", width / height);
      made.classList.add("fitted");
      made.classList.toggle("tiny", Math.max(width, height) <= TINY_PIXELS);
      if (unseen.delete(item.id)) render();
    });
    shows.addEventListener("error", () => {
      const lost = element("p", { class: "lost" }, "This image cannot be shown: it has gone, or is none.");
      made.replaceWith(lost);
      if (images.get(item.id) === made) images.set(item.id, lost);
      unseen.add(item.id);
      render();
    });
    images.set(item.id, made);
  }
  return made;
}

function prefetch() {
  if (project.kind !== "images") return;
  const near = strip.slice(Math.max(0, at - TILES), at + 2 * TILES);
  const kept = new Set(near.map(({ id }) => id));
  for (const id of images.keys()) if (!kept.has(id)) images.delete(id);
  near.forEach(image);
}

function empty() {
  const box = element("div", { class: "empty" });
  const status = summary?.status;
  if ((choosing || !status) && !status?.labelled) {
    box.append(element("p", { class: "title" }, "Choosing the first items."),
      element("p", {}, "This takes a second or two."));
  } else if (choosing) {
    box.append(element("p", { class: "title" }, "Choosing what to ask next"),
      element("p", {}, "The model learns from the answers so far. This takes a second or two."));
  } else if (status.waiting) {
    box.append(element("p", { class: "title" }, "Nothing for you at the moment"),
      element("p", {}, `What still waits for an answer, ${count(status.waiting)}, is for other annotators.`));
  } else {
    box.append(element("p", { class: "title" }, "All labelled"),
      element("p", {}, `${count(status.labelled)} items have a label` +
        (status.cannot_tell ? `, ${count(status.cannot_tell)} could not be told.` : ".")),
      element("p", {}, "To have them in a file: ",
        element("code", {}, `fastbadge label export PROJECT --csv labels.csv`)));
  }
  return kept(box.textContent, () => box);
}

// A class that is called by a digit has that key; the others have what is left, in their order.
function keysOf(classes) {
  const digit = ({ name }) => (/^[0-9]$/.test(name) ? name : null);
  const taken = new Set(classes.map(digit));
  const free = [..."123456789abcdefghijklmnopqrstuvwxyz"].filter((key) => !taken.has(key) && !RESERVED.includes(key));
  return classes.map((each) => digit(each) ?? free.shift());
}

function renderClasses() {
  const keys = keysOf(project.classes);
  const held = document.activeElement?.closest("#classes button")?.value;
  $("classes").replaceChildren(...project.classes.map(({ id, name }, i) => {
    const button = element("button", { type: "button", value: id, "aria-pressed": "false" });
    if (keys[i]) {
      button.dataset.key = keys[i];
      button.setAttribute("aria-keyshortcuts", keys[i].toUpperCase());
      button.append(element("kbd", {}, keys[i].toUpperCase()));
    }
    button.append(element("bdi", {}, name));
    button.addEventListener("click", () => answer("label", id));
    return button;
  }));
  if (held) $("classes").querySelector(`[value="${held}"]`).focus();
  $("classless").hidden = project.classes.length > 0;
  render();
}

async function showGuess() {
  const item = current();
  if (!item) return;
  try {
    const guess = await ask(`items/${item.id}/guess`);
    const name = guess && nameOf(guess.class);
    guesses.set(item.id, name);
    if (item !== current()) return;
    renderStage();
    say(name === null ? NO_GUESS : `The model's guess: ${name}.`);
  } catch (error) {
    showConnection(error);
  }
}

// --- what people do

function press(event) {
  const letters = $("letters").checked;
  const typing = event.target.matches("input:not([type=checkbox]), textarea, select");
  if (event.isComposing || typing || $("keys").open) return;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && key === "z" && !event.shiftKey) {
    event.preventDefault();
    if (!event.repeat) $("undo").click();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const act = arrow(key, event.repeat) ?? (letters && !event.repeat ? command(key) : null);
  if (!act) return;
  event.preventDefault();
  act();
}

function arrow(key, repeat) {
  const columns = grid ? getComputedStyle($("stage")).gridTemplateColumns.split(" ").length : 0;
  if (key === "arrowleft") return () => at > 0 && goTo(at - 1);
  if (key === "arrowright") return repeat && !grid ? null : () => step(1);
  if (key === "arrowup" && grid) return () => at - columns >= firstTile() && goTo(at - columns);
  if (key === "arrowdown" && grid) return () => isShown(at + columns) && step(columns);
  return null;
}

function command(key) {
  const button = [...$("classes").children].find(({ dataset }) => dataset.key === key);
  if (button) return () => button.click();
  const commands = { s: "skip", t: "cannot", "?": "cannot", u: "undo", g: "guess" };
  return commands[key] ? () => $(commands[key]).click() : null;
}

async function rename() {
  const name = $("annotator").value.trim();
  if (!name || name === annotator) {
    $("annotator").value = annotator;
    return;
  }
  const before = annotator;
  annotator = name;
  remember("fastbadge:annotator", name);
  strip = [];
  clicks = [];
  untouched = false;
  goTo(0);
  try {
    await ask("release", { annotator: before });
  } catch {
    // Their items are free again in ten minutes.
  }
  readNext();
}

async function addClass(event) {
  event.preventDefault();
  try {
    project.classes = await ask("classes", { name: $("name").value });
    $("name").value = "";
    renderClasses();
    leaveBox();
    soon("numbers", readNumbers, 1);
  } catch (error) {
    if (error instanceof Refused && error.status === 400) tell("notice", `Not added: ${error.message}`);
    else showConnection(error);
  }
}

// Keys are answers again.
function leaveBox() {
  $("stage").focus({ preventScroll: true });
}

function view(asGrid) {
  grid = asGrid;
  remember("fastbadge:view", grid ? "grid" : "one");
  goTo(at);
  readNext();
}

function back() {
  if (document.hidden) return;
  if (Date.now() - seen > 0.9 * 1000 * LEASE_SECONDS) {
    // What lay here has gone to others: begin again behind what was answered.
    const said = answers();
    strip = strip.filter(({ id }) => said.get(id));
    goTo(strip.length);
  }
  readNext();
  readNumbers();
}

// The items here are for others then. Not where the page may come back, as on a phone, nor while
// clicks wait: they are sent when it is opened again.
function leave(event) {
  if (event.persisted || outbox.size) return;
  ask("release", { annotator }).catch(() => {});
  remember(LEFT, Date.now()); // which the other tabs of this annotator hear
}

async function open() {
  try {
    project = await ask("project");
  } catch (error) {
    showConnection(error);
    return soon("open", open, 2);
  }
  document.title = `${project.name}: fastbadge label`;
  $("project").textContent = project.name;
  renderClasses();
  await outbox.send();
  readNext();
  readNumbers();
}

$("annotator").value = annotator;
remember("fastbadge:annotator", annotator);
$("annotator").addEventListener("change", rename);
$("letters").checked = remembered("fastbadge:letters") !== "off";
$("letters").addEventListener("change", () => remember("fastbadge:letters", $("letters").checked ? "on" : "off"));
$("adding").addEventListener("submit", addClass);
$("name").addEventListener("keydown", ({ key, isComposing }) => key === "Escape" && !isComposing && leaveBox());
$("one").addEventListener("click", () => view(false));
$("grid").addEventListener("click", () => view(true));
$("help").addEventListener("click", () => $("keys").showModal());
$("back").addEventListener("click", () => goTo(at - 1));
$("skip").addEventListener("click", () => answer("skip"));
$("cannot").addEventListener("click", () => answer("cannot tell"));
$("undo").addEventListener("click", undo);
$("guess").addEventListener("click", showGuess);
document.addEventListener("keydown", press);
document.addEventListener("visibilitychange", back);
// A notice goes with whatever is done next, also by a touch of it.
for (const kind of ["keydown", "click"]) addEventListener(kind, () => tell("notice", ""), true);
addEventListener("pagehide", leave);
addEventListener("storage", ({ key }) => key === LEFT && soon("next", readNext, 0.5));
open();
