"use strict";
(() => {
  const { documents, values, start } = JSON.parse(document.getElementById("data").textContent);
  const [SCORED, IS_TOP, IN_RANGE, FIXED_TARGET] = [1, 2, 4, 8]; // as page.py has them
  const LISTED = 5; // tokens that stand out
  const BLOCK = 200; // tokens, at least; a block is laid out only when it comes into view
  const AROUND = 24; // characters shown before and after one of them
  const byId = (id) => document.getElementById(id);
  const [text, strip, place, choice] = [byId("text"), byId("strip"), byId("place"), {}];
  for (const name of ["document", "value", "length"]) choice[name] = byId(name);

  // Text only ever through textContent, so that text is text.
  const add = (parent, name, content, attributes = {}) => {
    const element = document.createElement(name);
    if (content !== undefined) element.textContent = content;
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return parent.appendChild(element);
  };

  // Numbers: binary, little-endian; half precision.
  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const integers = (base64) => {
    const view = new DataView(bytes(base64).buffer);
    return Int32Array.from({ length: view.byteLength / 4 }, (_, index) => view.getInt32(4 * index, true));
  };
  const half = (bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return NaN; // only where a value is missing
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  };
  const halves = (base64) => {
    const view = new DataView(bytes(base64).buffer);
    return Float32Array.from({ length: view.byteLength / 2 }, (_, index) => half(view.getUint16(2 * index, true)));
  };
  const spread = (runs, count) => {
    const all = new Int32Array(count);
    runs.forEach(([from, value], index) => all.fill(value, from, runs[index + 1]?.[0] ?? count));
    return all;
  };
  const unpack = (packed) => {
    if (packed.tokens) return packed;
    const count = packed.text.length;
    packed.tokens = integers(packed.token);
    packed.positions = integers(packed.position);
    for (const at of packed.lengths) {
      for (const name of Object.keys(at.values)) at.values[name] = halves(at.values[name]);
      [at.start, at.shorter, at.flags] = [spread(at.start, count), spread(at.shorter, count), bytes(at.flags)];
    }
    return packed;
  };
  const whole = (number) => number.toLocaleString("en-US");
  const minus = (shown) => shown.replace("-", "−");
  const shown = (number) => {
    if (Number.isNaN(number)) return "–";
    const size = Math.abs(number);
    if (size > 0 && size < 0.001) return minus(number.toExponential(0));
    return minus(number.toFixed(size < 0.1 ? 4 : size < 10 ? 2 : 1));
  };
  const signed = (number) => (choice.value.value === "gain" && number > 0 ? "+" : "") + shown(number);

  // Characters that cannot be seen, or change the direction of what follows, get a visible name.
  const visible = (token) => token === "" ? "▫" : token.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) => {
    if (character === "\n") return "↵\n";
    if (character === "\t") return "⇥\t";
    if (character === "\u200c" || character === "\u200d") return character; // they join letters and emoji
    return `‹U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`;
  });
  const quoted = (token) => visible(token).replaceAll("\n", "").replaceAll("\t", "").replaceAll(" ", "␣");

  let [shownDocument, at, kind] = [null, null, null]; // the document, its values at the chosen length, the chosen value
  let [spans, current] = [[], -1];

  // Colours.
  const colour = (number) => {
    if (Number.isNaN(number)) return "missing";
    const bin = kind.bounds.filter((bound) => number >= bound).length;
    return `${kind.diverges ? "d" : "s"}${bin}`;
  };
  const series = () => at.values[choice.value.value];

  const legend = () => {
    const [list, bounds] = [byId("legend"), kind.bounds];
    list.textContent = "";
    for (let bin = 0; bin <= bounds.length; bin += 1) {
      const [low, high] = [bounds[bin - 1], bounds[bin]].map((bound) => bound !== undefined && minus(String(bound)));
      const range = bin === 0 ? `below ${high}` : bin === bounds.length ? `${low} or more` : `${low} to ${high}`;
      add(list, "li", range, { class: `${kind.diverges ? "d" : "s"}${bin}` });
    }
    add(list, "li", "not available", { class: "missing" });
  };

  const summary = () => {
    const found = Array.from(series()).filter((number) => !Number.isNaN(number));
    const total = whole(shownDocument.text.length);
    const share = (count) => `${((100 * count) / found.length).toFixed(1)} %`;
    const mean = found.reduce((sum, number) => sum + number, 0) / found.length;
    let sentence = `${kind.label} in the window of ${whole(at.length)} tokens: `;
    sentence += found.length ? `mean ${signed(mean)} nats over ${whole(found.length)} of ${total} tokens.` : `not available for any of ${total} tokens.`;
    if (kind.diverges && found.length) {
      const [worse, better] = [found.filter((number) => number < -1).length, found.filter((number) => number > 1).length];
      sentence += ` The longer context helps by more than 1 nat at ${share(better)} of them and hurts by more than 1 nat at ${share(worse)}.`;
    }
    byId("summary").textContent = sentence;
    byId("chosen").textContent = `Document: ${shownDocument.name}. Colours: ${kind.label}, in nats, window of ${whole(at.length)} tokens.`;
  };

  const extremes = () => {
    const [lists, numbers] = [byId("lists"), series()];
    lists.textContent = "";
    const order = Array.from(numbers.keys()).filter((index) => !Number.isNaN(numbers[index])).sort((a, b) => numbers[b] - numbers[a]);
    const put = (title, indices) => {
      const box = add(lists, "div");
      add(box, "h3", title);
      const list = add(box, "ol");
      for (const index of indices) {
        const button = add(add(list, "li"), "button", undefined, { type: "button" });
        add(button, "b", signed(numbers[index]));
        const words = add(button, "span");
        const near = (from, to) => Array.from(shownDocument.text.slice(Math.max(0, from), to).join(""));
        words.append(`…${visible(near(index - AROUND, index).slice(-AROUND).join(""))}`);
        add(words, "mark", visible(shownDocument.text[index]));
        words.append(`${visible(near(index + 1, index + 1 + AROUND).slice(0, AROUND).join(""))}…`);
        button.addEventListener("click", () => go(index, { focus: true }));
      }
      if (!indices.length) add(box, "p", "None.", { class: "small" });
    };
    if (kind.diverges) {
      put("The longer context hurts most", order.slice(-LISTED).reverse().filter((index) => numbers[index] < 0));
      put("The longer context helps most", order.slice(0, LISTED).filter((index) => numbers[index] > 0));
    } else put(`Highest ${kind.label}`, order.slice(0, LISTED));
  };

  // The strip: a column of pixels has the colour of the mean of its tokens.
  const drawStrip = () => {
    const [numbers, count] = [series(), shownDocument.text.length];
    strip.width = Math.max(1, Math.min(strip.clientWidth, count));
    const [pen, style] = [strip.getContext("2d"), getComputedStyle(document.documentElement)];
    for (let column = 0; column < strip.width; column += 1) {
      const [from, to] = [column, column + 1].map((edge) => Math.floor((edge * count) / strip.width));
      const found = Array.from(numbers.subarray(from, to)).filter((number) => !Number.isNaN(number));
      const name = colour(found.length ? found.reduce((sum, number) => sum + number, 0) / found.length : NaN);
      pen.fillStyle = style.getPropertyValue(name === "missing" ? "--line" : `--${name}`);
      pen.fillRect(column, 0, 1, 1);
    }
  };

  const shorterContext = ({ draws, shorter }, index) => draws > 1 ? `Jeffreys: mean over ${draws} shorter contexts.` : `The shorter context has ${whole(shorter[index])} tokens.`;

  // The numbers of a token.
  const tell = (index) => {
    const [token, position] = [shownDocument.text[index], shownDocument.positions[index]];
    const sentence = byId("sentence");
    sentence.textContent = "Token ";
    add(sentence, "b", quoted(token));
    const [number, length] = [series()[index], whole(at.length)];
    let words = `, id ${shownDocument.tokens[index]}, position ${whole(position)}. `;
    if (!(at.flags[index] & SCORED)) words += `Not scored in the window of ${length} tokens.`;
    else if (Number.isNaN(number)) words += `${kind.label}: not available in the window of ${length} tokens.`;
    else words += `${kind.label}: ${signed(number)} nats in the window of ${length} tokens.`;
    if (at.shorter[index] >= 0) words += ` ${shorterContext(at, index)}`;
    const metrics = [[FIXED_TARGET, "ppl_tail"], [IN_RANGE, "jeffreys"]].filter(([flag]) => at.flags[index] & flag);
    if (metrics.length) words += ` Counts for ${metrics.map(([, name]) => `${name}@${at.length}`).join(" and ")}.`;
    sentence.append(words);
    const table = byId("numbers");
    table.textContent = "";
    const head = add(add(table, "thead"), "tr");
    for (const title of ["length", "context", "NLL", "gain", "entropy", "Jeffreys", "top-1"]) add(head, "th", title, { scope: "col" });
    const body = add(table, "tbody");
    for (const one of shownDocument.lengths.toReversed()) {
      const row = add(body, "tr", undefined, one === at ? { "aria-current": "true" } : {});
      add(row, "th", whole(one.length), { scope: "row" });
      const scored = one.flags[index] & SCORED;
      add(row, "td", scored ? whole(position - one.start[index]) : "–");
      for (const name of ["nll", "gain", "entropy", "jeffreys"]) {
        add(row, "td", shown(one.values[name][index]));
      }
      add(row, "td", scored ? (one.flags[index] & IS_TOP ? "yes" : "no") : "–");
    }
  };

  const choose = (index) => {
    if (spans[current]) {
      spans[current].classList.remove("current");
      spans[current].removeAttribute("tabindex");
      spans[current].setAttribute("aria-selected", "false");
    }
    current = index;
    spans[current].classList.add("current");
    spans[current].tabIndex = 0;
    spans[current].setAttribute("aria-selected", "true");
    place.value = index;
    place.setAttribute("aria-valuetext", `token ${whole(shownDocument.positions[index])}`);
    tell(index);
  };
  // Blocks on the way get their true heights only when they come into view, which moves what is below them: again, then.
  const reveal = (index, block) => {
    const scroll = () => index === current && spans[index].scrollIntoView({ block, behavior: "instant" });
    scroll();
    requestAnimationFrame(() => { scroll(); requestAnimationFrame(scroll); });
  };
  const go = (index, { focus = false, block = "center" } = {}) => {
    choose(index);
    if (focus) spans[index].focus({ preventScroll: true });
    reveal(index, block);
  };

  const paint = () => {
    const numbers = series();
    spans.forEach((span, index) => { span.className = colour(numbers[index]) + (index === current ? " current" : ""); });
  };
  const update = () => {
    kind = values[choice.value.value];
    at = shownDocument.lengths.find((one) => one.length === Number(choice.length.value));
    byId("definition").textContent = kind.definition;
    legend();
    paint();
    summary();
    extremes();
    drawStrip();
    if (current >= 0) tell(current);
  };

  const open = () => {
    const wanted = Number(choice.length.value || start.length);
    shownDocument = unpack(documents[choice.document.selectedIndex]);
    choice.length.textContent = "";
    for (const one of shownDocument.lengths) add(choice.length, "option", whole(one.length), { value: one.length });
    const lengths = shownDocument.lengths.map((one) => one.length);
    choice.length.value = lengths.includes(wanted) ? wanted : lengths.at(-1);
    const all = document.createDocumentFragment();
    let [next, block] = [shownDocument.positions[0], null];
    spans = shownDocument.text.map((token, index) => {
      const position = shownDocument.positions[index];
      if (position > next) {
        add(all, "p", `[${whole(position - next)} tokens that were not scored]`, { class: "small", role: "presentation" });
        block = null;
      }
      next = position + 1;
      block ??= add(all, "div", undefined, { role: "presentation" });
      const span = add(block, "span", visible(token), { role: "option", "aria-selected": "false" });
      span.index = index;
      if (token.endsWith("\n") && block.childElementCount >= BLOCK) block = null;
      return span;
    });
    text.replaceChildren(all);
    current = -1;
    place.max = spans.length - 1;
    update();
    choose(0);
  };

  // The token of the line above or below that is nearest to the current one.
  const vertical = (step) => {
    const from = spans[current].getBoundingClientRect();
    const [middle, heights] = [(from.left + from.right) / 2, from.height / 2];
    let [best, distance, line] = [current, Infinity, null];
    for (let index = current + step; spans[index]; index += step) {
      const box = spans[index].getClientRects()[0];
      if (Math.abs(box.top - from.top) < heights) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) >= heights) break;
      const away = Math.max(box.left - middle, middle - box.right, 0);
      if (away < distance) [best, distance] = [index, away];
    }
    return best;
  };
  text.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || current < 0) return;
    const last = spans.length - 1;
    const to = {
      ArrowRight: () => Math.min(current + 1, last), ArrowLeft: () => Math.max(current - 1, 0), Home: () => 0, End: () => last,
      ArrowDown: () => vertical(1), ArrowUp: () => vertical(-1),
    }[event.key]?.();
    if (to === undefined) return;
    event.preventDefault();
    go(to, { focus: true, block: "nearest" });
  });
  text.addEventListener("focusin", (event) => event.target.index !== undefined && event.target.index !== current && choose(event.target.index));
  text.addEventListener("click", (event) => {
    if (event.target.index === undefined) return;
    choose(event.target.index);
    spans[current].focus({ preventScroll: true });
  });
  // Not pointerover, which also comes when the text scrolls below a pointer at rest.
  text.addEventListener("pointermove", (event) => event.pointerType !== "touch" && event.target.index !== undefined && tell(event.target.index));
  text.addEventListener("pointerleave", () => tell(current));
  place.addEventListener("input", () => go(Number(place.value)));

  documents.forEach((one, index) => add(choice.document, "option", `${one.index}: ${visible(one.name)}`, { value: index }));
  for (const [name, one] of Object.entries(values)) add(choice.value, "option", one.label, { value: name });
  choice.value.value = start.value;
  byId("extremes").open = matchMedia("(min-width: 60rem)").matches;
  choice.document.addEventListener("change", open);
  choice.value.addEventListener("change", update);
  choice.length.addEventListener("change", update);
  open();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawStrip);
  new ResizeObserver(drawStrip).observe(strip);
})();
