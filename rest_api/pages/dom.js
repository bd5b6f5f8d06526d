/** Helpers to create and change elements. Text is only ever set as text: nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** Create an element. Attributes that are null or false are omitted, functions become listeners, strings become text. */
export function makeElement(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Create an SVG element. */
export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Return the element with this id. */
export function byId(id) {
  return document.getElementById(id);
}

/** Set an element's text only if it differs, so that screen readers and selections are not disturbed. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}
