// Items of the catalog, as text.

/** "Title (Year)", or the title alone. It also tells items apart. */
export function nameOf(item) {
  return item.year == null ? item.title : `${item.title} (${item.year})`;
}

/** All values of an item's metadata, {field: [value, ...]}. */
export function tagsOf(item) {
  return Object.values(item.metadata ?? {}).flat().map(String);
}

/** What stands under the title: the year and the metadata. */
export function detailsOf(item) {
  const outside = item.in_catalog === false ? ["not in the catalog"] : [];
  return [...(item.year == null ? [] : [item.year]), ...outside, ...tagsOf(item)].join(" \u00b7 ");
}

/** The probability of a line, from its log-probability: "12 %". */
export function percent(score) {
  const share = 100 * Math.exp(score);
  if (share < 0.1) return "< 0.1 %";
  return `${share < 10 ? share.toFixed(1) : share.toFixed(0)} %`;
}
