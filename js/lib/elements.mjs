// Small helpers for the DOM.

/** An element with properties, data-* and children: make('button', {textContent: 'x'}, child). */
export function make(tag, { data = {}, attributes = {}, ...properties } = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties)
  Object.assign(element.dataset, data)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

/** Put a style sheet on the page, once. */
export function addStyle(id, text) {
  if (document.getElementById(id)) return
  document.head.append(make('style', { id, textContent: text }))
}
