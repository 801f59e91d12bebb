// Images as the model sees them, to the byte: what mmcompress/data/preprocess.py does with Pillow.
//
// The browser only decodes. A canvas resizes by a filter of its own, another one in every browser, and the model would
// see other pixels than it was measured on. So Pillow's resampling is written out here: antialiased, on bytes, with
// weights of 22 bits, along rows and then along columns, each rounded to a byte (Resample.c of Pillow). From version 13
// on Pillow takes the columns of a tall image first; the page does as the Pillow that it was made with.

const WEIGHT_BITS = 22;
const MAX_ASPECT = 100;

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** By Pillow's name: how far a filter reaches, and its value there. */
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
    return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

/** An image file -> {width, height, data}: upright, RGB, what is transparent laid on white. */
export async function decoded(file) {
  const asStored = { colorSpaceConversion: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(file, asStored);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < data.length; from += 4, to += 3) {
    data[to] = rgba[from];
    data[to + 1] = rgba[from + 1];
    data[to + 2] = rgba[from + 2];
  }
  return { width, height, data };
}

/** An RGB image -> the (S, S, 3) bytes of the model's square. */
export function prepared(image, rule) {
  const { width, height } = image;
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (!rule.squash && long > MAX_ASPECT * short) {
    throw new Error(`an image of ${width} x ${height} pixels is more than ${MAX_ASPECT} times longer than it is wide`);
  }
  const longer = Math.trunc((rule.resize * long) / short);
  const [across, down] = rule.squash ? [rule.resize, rule.resize]
    : width <= height ? [rule.resize, longer] : [longer, rule.resize];
  return centre(resized(image, across, down, rule), rule.size, rule.centre);
}

/** (S, S, 3) bytes -> (3, S, S) floats, (x / 255 - mean) / std, each step rounded to 32 bits as numpy does. */
export function normalized(pixels, rule) {
  const plane = rule.size * rule.size;
  const out = new Float32Array(3 * plane);
  for (let channel = 0; channel < 3; channel++) {
    const [mean, std] = [Math.fround(rule.mean[channel]), Math.fround(rule.std[channel])];
    const table = Float32Array.from({ length: 256 }, (_, value) =>
      Math.fround(Math.fround(value * (1 / 255)) - mean) / std);
    for (let i = 0; i < plane; i++) out[channel * plane + i] = table[pixels[3 * i + channel]];
  }
  return out;
}

function resized(image, width, height, { interpolation, columns_first }) {
  if (interpolation === "nearest") return nearest(image, width, height);
  const filter = FILTERS[interpolation];
  const rows = (now) => (width === now.width ? now : alongRows(now, width, filter));
  const columns = (now) => (height === now.height ? now : turned(alongRows(turned(now), height, filter)));
  const tall = image.height > height && image.height - height > 2 * (image.width - width);
  return columns_first && tall ? rows(columns(image)) : columns(rows(image));
}

function alongRows({ width, height, data }, target, filter) {
  const out = new Uint8Array(target * height * 3);
  const taps = weights(width, target, filter);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < target; x++) {
      const { first, values } = taps[x];
      let from = 3 * (y * width + first);
      let [r, g, b] = [HALF, HALF, HALF];
      for (let i = 0; i < values.length; i++, from += 3) {
        r += data[from] * values[i];
        g += data[from + 1] * values[i];
        b += data[from + 2] * values[i];
      }
      const to = 3 * (y * target + x);
      out[to] = byte(r);
      out[to + 1] = byte(g);
      out[to + 2] = byte(b);
    }
  }
  return { width: target, height, data: out };
}

const HALF = 1 << (WEIGHT_BITS - 1);
const byte = (sum) => Math.min(255, Math.max(0, sum >> WEIGHT_BITS));

/** For each place of the result: the first pixel that counts, and the weight of each from there on. */
function weights(size, target, [reach, value]) {
  const scale = size / target;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: target }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * stretch + 0.5));
    const end = Math.min(size, Math.trunc(centre + reach * stretch + 0.5));
    const exact = Array.from({ length: end - first }, (_, i) => value((i + first - centre + 0.5) * (1 / stretch)));
    const sum = exact.reduce((a, b) => a + b, 0);
    const values = Int32Array.from(exact, (one) => {
      const share = sum === 0 ? one : one / sum;
      return Math.trunc(share * 2 ** WEIGHT_BITS + (share < 0 ? -0.5 : 0.5));
    });
    return { first, values };
  });
}

function turned({ width, height, data }) {
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = 3 * (y * width + x), to = 3 * (x * height + y);
      out[to] = data[from];
      out[to + 1] = data[from + 1];
      out[to + 2] = data[from + 2];
    }
  }
  return { width: height, height: width, data: out };
}

function nearest(image, width, height) {
  const [columns, rows] = [nearestPlaces(image.width, width), nearestPlaces(image.height, height)];
  const out = new Uint8Array(width * height * 3);
  rows.forEach((row, y) => columns.forEach((column, x) => {
    const from = 3 * (row * image.width + column);
    out.set(image.data.subarray(from, from + 3), 3 * (y * width + x));
  }));
  return { width, height, data: out };
}

/** Pillow adds up the steps, so their rounding is part of the rule. */
function nearestPlaces(size, target) {
  const step = size / target;
  const places = [];
  for (let i = 0, at = step * 0.5; i < target; i++, at += step) places.push(Math.trunc(at));
  return places;
}

/** The middle square; black where the image is smaller. */
function centre({ width, height, data }, size, rounding) {
  const out = new Uint8Array(size * size * 3);
  const [top, left] = [margin(height, size, rounding), margin(width, size, rounding)];
  for (let y = Math.max(0, -top); y < Math.min(size, height - top); y++) {
    const begin = Math.max(0, -left), end = Math.min(size, width - left);
    const from = 3 * ((y + top) * width + begin + left);
    out.set(data.subarray(from, from + 3 * (end - begin)), 3 * (y * size + begin));
  }
  return out;
}

/** What is cut off before the square, below 0 what is added; `even` takes the even one of two places. */
function margin(side, size, rounding) {
  const rest = side - size;
  const half = Math.floor(rest / 2);
  return rounding === "even" && rest % 2 !== 0 && half % 2 !== 0 ? half + 1 : half;
}
