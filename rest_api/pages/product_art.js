/**
 * Product art: a pattern for each product, generated from its code and name, because the shop has no photographs.
 * The same product always gets the same pattern. Colours come from the style sheet, so they follow light and dark mode.
 */

import { makeSvg } from "./dom.js";

const PALETTES = 8;
const HEART = "M0 5C-7 0-5-6 0-2.5 5-6 7 0 0 5Z";
const STAR = "M0-6 1.8-1.9 6-1.9 2.6 1 4 5.6 0 2.8-4 5.6-2.6 1-6-1.9-1.8-1.9Z";
const LEAF = "M0-7C5-3 4 4 0 7-4 4-5-3 0-7Z";
const FLOWER = "M0-1.5C-4-8 4-8 0-1.5 7-4 7 4 0 1.5 4 8-4 8 0 1.5-7 4-7-4 0-1.5Z";
const BIRD = "M-7-1C-4-3-3 1 0 0 1-5 5-5 5-2L8-1 5 0C4 6-3 6-5 1Z";

/** Patterns by words of the name; the first match counts. */
const PATTERNS_BY_NAME = [
  [/heart|love|cupid|valentine/i, motif(HEART)],
  [/star|christmas|advent|reindeer|snow/i, motif(STAR)],
  [/flower|rose|daisy|botanical|lily|garden/i, motif(FLOWER)],
  [/bird|dove|owl|duck|hen|chick/i, motif(BIRD)],
  [/wood|tree|leaf|leaves|herb|mushroom|apple|fruit/i, motif(LEAF)],
  [/spot|polka|dot/i, dots],
  [/strip/i, stripes],
  [/gingham|check|union|flag/i, gingham],
];
const OTHER_PATTERNS = [dots, stripes, gingham, scallops, motif(LEAF), motif(FLOWER), motif("M-3 0H3M0-3V3")];

let created = 0; // makes the ids of patterns unique

/** Create the SVG of a product. It is decorative: screen readers skip it. */
export function productArt(code, name) {
  const seed = hash(code);
  const pattern = PATTERNS_BY_NAME.find(([words]) => words.test(name))?.[1] ?? OTHER_PATTERNS[(seed >>> 8) % OTHER_PATTERNS.length];
  const id = `art-${(created += 1)}`;
  const size = 22 + ((seed >>> 16) % 3) * 4;
  const turn = [0, 0, 45, 30][(seed >>> 20) % 4];
  const tile = makeSvg("pattern", {
    id, width: size, height: size, patternUnits: "userSpaceOnUse", patternTransform: `rotate(${turn})`,
  }, ...pattern(size));
  return makeSvg(
    "svg",
    { class: `art art-${seed % PALETTES}`, viewBox: "0 0 160 110", preserveAspectRatio: "xMidYMid slice", "aria-hidden": "true" },
    makeSvg("defs", {}, tile),
    makeSvg("rect", { class: "ground", width: 160, height: 110 }),
    makeSvg("rect", { width: 160, height: 110, fill: `url(#${id})` }),
  );
}

function motif(path) {
  return (size) => [
    makeSvg("path", { class: "ink", d: path, transform: `translate(${size / 4} ${size / 4})` }),
    makeSvg("path", { class: "ink faint", d: path, transform: `translate(${size * 0.75} ${size * 0.75})` }),
  ];
}

function dots(size) {
  return [
    makeSvg("circle", { class: "ink", cx: size / 4, cy: size / 4, r: size / 9 }),
    makeSvg("circle", { class: "ink", cx: size * 0.75, cy: size * 0.75, r: size / 9 }),
  ];
}

function stripes(size) {
  return [
    makeSvg("rect", { class: "ink faint", x: 0, y: 0, width: size / 3, height: size }),
    makeSvg("rect", { class: "ink", x: size * 0.6, y: 0, width: 2, height: size }),
  ];
}

function gingham(size) {
  return [
    makeSvg("rect", { class: "ink faint", x: 0, y: 0, width: size / 2, height: size }),
    makeSvg("rect", { class: "ink faint", x: 0, y: 0, width: size, height: size / 2 }),
  ];
}

function scallops(size) {
  const half = size / 2;
  return [0.5, 0.32, 0.14].map((radius) =>
    makeSvg("circle", { class: "wave", cx: half, cy: size, r: size * radius }),
  );
}

/** Compute the FNV-1a hash, 32 bits. */
function hash(text) {
  let value = 0x811c9dc5;
  for (const character of text) value = Math.imul(value ^ character.codePointAt(0), 0x01000193);
  return (value ^ (value >>> 15)) >>> 0;
}
