// The panel of numbers. All of what it shows comes as text and numbers, and is set as such.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...content) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

function drawn(name, attributes, ...content) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...content);
  return made;
}

export const count = (number) => number.toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(0)} %`;
const valueOf = (rate) => rate.correct / rate.total;

export function showNumbers(summary, lookAgain) {
  draw("accuracy", accuracy(summary.numbers));
  draw("balance", balance(summary));
  draw("people", people(summary, lookAgain));
}

export function showDoubts(doubts, looking, lookAgain, find) {
  draw("doubts", doubtful(doubts, looking, lookAgain, find));
}

// What has not changed stays; where something has, what was open is open again and keeps the focus.
function draw(id, content) {
  const box = document.getElementById(id);
  const made = element("div", { id }, ...content);
  const details = box.querySelector("details");
  if (details?.open) made.querySelector("details")?.setAttribute("open", "");
  if (made.isEqualNode(box)) return;
  const held = box.contains(document.activeElement) ? document.activeElement : null;
  box.replaceChildren(...made.childNodes);
  if (held) box.querySelector(held.value ? `button[value="${held.value}"]` : "summary")?.focus({ preventScroll: true });
}

function* accuracy({ accuracy, words, curve, forecast }) {
  if (accuracy) yield element("p", { class: "figure" }, `${(100 * valueOf(accuracy)).toFixed(1)} %`);
  // The page makes no sentences about the numbers of its own.
  yield element("p", forecast && forecast.high < 0.01 ? { class: "enough" } : {}, words);
  if (curve.length > 1) yield chart(curve);
}

function chart(curve) {
  const width = 340, height = 170, left = 40, right = 10, top = 12, bottom = 28;
  const most = curve.at(-1)[0];
  const least = Math.floor(10 * Math.min(...curve.map(([, rate]) => rate.low))) / 10;
  const x = (labels) => left + (labels / most) * (width - left - right);
  const y = (share) => top + ((1 - share) / (1 - least || 1)) * (height - top - bottom);
  const point = ([labels, share]) => `${x(labels).toFixed(1)},${y(share).toFixed(1)}`;
  const line = curve.map(([labels, rate]) => [labels, valueOf(rate)]);
  const band = [
    ...curve.map(([labels, rate]) => [labels, rate.high]),
    ...curve.map(([labels, rate]) => [labels, rate.low]).reverse(),
  ];
  const [first, last] = [line[0], line.at(-1)];
  const said = `Accuracy against labels trained on: ${percent(first[1])} with ${count(first[0])}, ` +
    `${percent(last[1])} with ${count(last[0])}.`;
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  for (const share of [least, (least + 1) / 2, 1]) {
    svg.append(
      drawn("line", { class: "rule", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      drawn("text", { class: "y", x: left - 6, y: y(share) + 4 }, percent(share)));
  }
  svg.append(
    drawn("polygon", { class: "band", points: band.map(point).join(" ") }),
    drawn("polyline", { class: "line", points: line.map(point).join(" ") }),
    drawn("circle", { class: "dot", r: 3.5, cx: x(last[0]), cy: y(last[1]) }),
    drawn("text", { class: "x", x: left, y: height - 8 }, "0"),
    drawn("text", { class: "x end", x: width - right, y: height - 8 }, `${count(most)} labels`));
  const rows = curve.map(([labels, rate]) => element("tr", {},
    element("td", {}, count(labels)),
    element("td", {}, percent(valueOf(rate))),
    element("td", {}, `${percent(rate.low)} to ${percent(rate.high)}`)));
  return element("figure", {}, svg,
    element("details", {}, element("summary", {}, "Curve as a table"),
      table(["Labels", "Accuracy", "95 % interval"], rows)));
}

function table(titles, rows) {
  const head = titles.map((title) => element("th", { scope: "col" }, title));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
}

function* balance({ classes, confused }) {
  const most = Math.max(1, ...classes.map(({ labels }) => labels));
  const rows = classes.map(({ name, labels, recall: rate }) => {
    const bar = element("span", { class: "bar" });
    bar.style.width = `${(100 * labels) / most}%`;
    return element("tr", {},
      element("th", { scope: "row" }, element("bdi", {}, name)),
      element("td", { class: "wide" }, bar),
      element("td", {}, count(labels)),
      rate
        ? element("td", { title: `${percent(rate.low)} to ${percent(rate.high)}` }, percent(valueOf(rate)))
        : element("td", { class: "none", title: "too few validation labels" }, "–"));
  });
  if (rows.length) {
    const made = table(["Class", "", "Labels", "Recall"], rows);
    made.querySelectorAll("th")[1].replaceWith(element("td"));
    yield made;
  }
  if (confused.length) {
    const list = confused.map(([truth, guess, times]) => element("li", {},
      element("bdi", {}, truth), " taken for ", element("bdi", {}, guess), `: ${count(times)}`));
    yield element("details", {}, element("summary", {}, "Often confused"), element("ul", {}, ...list));
  }
}

function* people({ status, annotators, disputes }, lookAgain) {
  const { disputed, cannot_tell, missing } = status;
  const rows = annotators.map(([name, answers]) => element("tr", {},
    element("th", { scope: "row" }, element("bdi", {}, name)), element("td", {}, count(answers))));
  yield rows.length ? table(["Name", "Answers"], rows) : element("p", {}, "No answers yet.");
  if (cannot_tell) yield element("p", {}, `${count(cannot_tell)} could not be told.`);
  if (missing) yield element("p", {}, `${count(missing)} files have gone from the source.`);
  if (!disputed) return;
  const list = disputes.map(({ item, name, answers }) => {
    const said = answers.flatMap(([who, what], i) => [
      i ? "; " : "", element("bdi", {}, who), ": ", element("bdi", {}, what)]);
    return again(item, name, said, lookAgain);
  });
  yield element("details", {},
    element("summary", {}, `Annotators differ on ${count(disputed)}`),
    element("ul", { class: "disputes" }, ...list));
}

// An item of a list, with what is said of it, to be opened once more.
function again(item, name, said, lookAgain) {
  const button = element("button", { type: "button", value: item }, "Look again");
  button.addEventListener("click", () => lookAgain(item));
  return element("li", {}, element("bdi", { class: "name" }, name), element("span", {}, ...said), button);
}

function* doubtful(doubts, looking, lookAgain, find) {
  const button = element("button", { type: "button", value: "find" }, "Find doubtful labels");
  button.addEventListener("click", find);
  yield button;
  if (looking) yield element("p", {}, "Looking for labels that the model doubts. This takes a few seconds.");
  else if (doubts?.error) yield element("p", {}, `Not found: ${doubts.error}`);
  if (!doubts?.doubts) return;
  const { found, labels } = doubts;
  yield element("p", {}, `The model doubts ${count(found)} of ${count(labels)} labels` +
    (found > doubts.doubts.length ? `; the most doubtful ${count(doubts.doubts.length)}:` : "."));
  const list = doubts.doubts.map(({ item, name, label, suggested }) => again(item, name,
    ["Label: ", element("bdi", {}, label), "; the model: ", element("bdi", {}, suggested)], lookAgain));
  yield element("ul", { class: "disputes" }, ...list);
}
