// Entities and texts, without the document: what the page computes itself.

/** Where each code point of a text begins in JavaScript's UTF-16: the server counts code points, strings do not. */
export function codePointStarts(text) {
  const starts = [];
  let at = 0;
  for (const point of text) {
    starts.push(at);
    at += point.length;
  }
  starts.push(at);
  return starts;
}

/**
 * The entities that a request at this threshold would give. Selection takes candidates by falling score, so what one
 * threshold leaves out never made room for, or kept out, what a higher one accepts.
 */
export function above(entities, threshold) {
  return entities.filter((entity) => entity.score > threshold);
}

/**
 * Entities as a forest: each holds what lies within it, and all the labels of its span. Returns nodes
 * {start, end, labels: [{label, score}], inside: [node], height}, in the text's order; height is 0 without nodes inside.
 * No two entities of one answer cross.
 */
export function nest(entities) {
  const ordered = [...entities].sort((a, b) => a.start - b.start || b.end - a.end || b.score - a.score);
  const roots = [];
  const open = [];
  for (const { start, end, label, score } of ordered) {
    while (open.length && open.at(-1).end <= start) open.pop();
    const top = open.at(-1);
    if (top && top.start === start && top.end === end) {
      top.labels.push({ label, score });
      continue;
    }
    const node = { start, end, labels: [{ label, score }], inside: [], height: 0 };
    (top ? top.inside : roots).push(node);
    open.push(node);
    for (let i = open.length - 2; i >= 0; i--) open[i].height = Math.max(open[i].height, open[i + 1].height + 1);
  }
  return roots;
}

/** "school = university or college" -> {name, description}; null for a blank. */
export function parseLabel(typed) {
  const [name, ...rest] = typed.split("=");
  const trimmed = name.trim().replace(/\s+/g, " ");
  if (!trimmed) return null;
  return { name: trimmed, description: rest.join("=").trim() || trimmed };
}

/** The `labels` of a request: a list of names, or names with descriptions where one has its own. */
export function labelsOf(labels) {
  if (labels.every(({ name, description }) => name === description)) return labels.map(({ name }) => name);
  return Object.fromEntries(labels.map(({ name, description }) => [name, description]));
}

/** A command for a POSIX shell that asks the same. The key is named, never shown. */
export function curl(url, request, withKey) {
  const quoted = (value) => `'${value.replaceAll("'", `'\\''`)}'`;
  const lines = [`curl ${quoted(url)}`, `-H 'Content-Type: application/json'`];
  if (withKey) lines.push(`-H "Authorization: Bearer $SPANLAKE_API_KEY"`);
  lines.push(`--data-binary ${quoted(JSON.stringify(request))}`);
  return lines.join(" \\\n  ");
}
