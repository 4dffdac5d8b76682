/** Small plots made of block glyphs. */

const BLOCKS = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"] as const;

/** One glyph for each value, scaled to the largest; zero and below is a blank. */
export function sparkline(values: readonly number[]): string {
  const peak = Math.max(0, ...values);
  return values.map((value) => {
    if (!(value > 0)) return " ";
    return BLOCKS[Math.min(BLOCKS.length - 1, Math.ceil(value / peak * BLOCKS.length) - 1)] ?? " ";
  }).join("");
}

/** A line below a sparkline with a mark at each position that is listed, as wide as `width`. */
export function marks(positions: readonly number[], width: number): string {
  const marked = new Set(positions);
  return Array.from({ length: width }, (_, position) => marked.has(position) ? "▲" : "·").join("");
}
