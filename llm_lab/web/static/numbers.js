// Writes numbers as runs/glossary.py does: each quantity comes with its format. A test compares the two.

const withCommas = (text) => text.replace(/^(-?\d+)/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ","));
const fixed = (value, digits) => withCommas(value.toFixed(digits));
const twoDigits = (value) => value.toFixed(value >= 9.95 ? 0 : 1);
const two = (value) => String(value).padStart(2, "0");

function exponent(value, digits) {
  return value.toExponential(digits).replace(/e([+-])(\d)$/, "e$10$2");
}

function general(value, digits, keepZeros) {
  if (value === 0) return keepZeros ? (0).toFixed(digits - 1) : "0";
  const power = Number(value.toExponential(digits - 1).split("e")[1]);
  const small = power < -4 || power >= digits;
  const text = small ? exponent(value, digits - 1) : value.toFixed(Math.max(0, digits - 1 - power));
  if (keepZeros) return text.includes(".") ? text : `${text}.`; // as Python does
  if (!text.includes(".")) return text;
  return text.replace(/\.?0+(?=e|$)/, "");
}

function scaled(value, units, plain) {
  for (const [unit, name] of units) if (value >= unit * 0.9995) return `${twoDigits(value / unit)} ${name}`;
  return plain(value);
}

const COUNTS = [[1e12, "T"], [1e9, "B"], [1e6, "M"]];
const SIZES = [[2 ** 40, "TiB"], [2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];

const FORMS = {
  decimal: (value) => {
    const size = Math.abs(value);
    if (size > 0 && size < 1e-3) return exponent(value, 2);
    return fixed(value, size < 1000 ? 4 : 0);
  },
  percent: (value) => `${(100 * value).toFixed(1)} %`,
  count: (value) => (value < 9999.5 ? fixed(value, 0) : scaled(value, COUNTS, () => `${twoDigits(value / 1e3)} k`)),
  size: (value) => scaled(value, SIZES, () => `${value.toFixed(0)} bytes`),
  clock: (value) => {
    const seconds = Math.floor(Math.max(0, value) + 0.5);
    const [hour, minute, second] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
    if (hour >= 48) return `${Math.floor(hour / 24)}d ${two(hour % 24)}:${two(minute)}:${two(second)}`;
    return hour ? `${hour}:${two(minute)}:${two(second)}` : `${minute}:${two(second)}`;
  },
  milliseconds: (value) => `${fixed(1000 * value, 1)} ms`,
  significant: (value) => general(value, 3, false).replace(/e([+-])0*/, (_, sign) => `e${sign === "+" ? "" : sign}`),
  compact: (value) => (value < 1e6 ? fixed(value, 2) : general(value, 3, false)),
};

/** Return a value in the format of its quantity: "percent", "count", or a Python format such as "{:.4f}". */
export function write(form, value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (FORMS[form]) return FORMS[form](value);
  const found = /^\{:(\+?)(#?)(,?)\.(\d+)([fg])\}$/.exec(form);
  if (!found) return FORMS.decimal(value);
  const [, plus, sharp, commas, digits, kind] = found;
  const text = kind === "g" ? general(value, Number(digits), Boolean(sharp)) : value.toFixed(Number(digits));
  return (plus && value >= 0 ? "+" : "") + (commas ? withCommas(text) : text);
}
