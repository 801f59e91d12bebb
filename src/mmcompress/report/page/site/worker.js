// The models, in a thread of their own so that the page stays alive: opened once, asked by messages.
//
// ONNX Runtime runs on one thread: more of them need a site that is isolated from others by headers, which a folder of
// files cannot send. A tower's time is that of its graph alone, after one call that nobody counts.

import * as ort from "./vendor/onnxruntime.js";
import { decoded, normalized, prepared } from "./pixels.js";
import { mask, reader } from "./texts.js";

const ARRAYS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };
const models = [];

const answer = {
  /** Opens every model of the page. */
  async open(description, tell) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = (await fetched(description.runtime)).buffer;
    for (const model of description.models) {
      tell(`Loading ${model.name}…`);
      const read = reader(JSON.parse(new TextDecoder().decode(await fetched(model.texts.file))), model.texts);
      const opened = { ...model, read, known: new Map(), image: await tower(model.image), text: await tower(model.text) };
      const { size } = model.preprocessing;
      await run(opened.image, new Float32Array(3 * size * size), [1, 3, size, size]);
      await run(opened.text, read(""), [1, model.texts.context], model.texts);
      models.push(opened);
    }
  },

  /** An image file -> of each model its embedding, and how long preparing and embedding took. */
  async image(file) {
    const image = await decoded(file);
    const answers = [];
    for (const model of models) {
      const begin = performance.now();
      const pixels = normalized(prepared(image, model.preprocessing), model.preprocessing);
      const prepare_ms = performance.now() - begin;
      const { size } = model.preprocessing;
      answers.push({ prepare_ms, ...(await embedding(model.image, pixels, [1, 3, size, size])) });
    }
    return answers;
  },

  /** Texts -> of each model an embedding a text, and how long a text took; null where all were known already. */
  async texts(texts) {
    const answers = [];
    for (const model of models) {
      const times = [];
      for (const text of texts) {
        if (model.known.has(text)) continue;
        const found = await embedding(model.text, model.read(text), [1, model.texts.context], model.texts);
        model.known.set(text, found.embedding);
        times.push(found.ms);
      }
      const ms = times.length ? times.reduce((a, b) => a + b) / times.length : null;
      answers.push({ embeddings: texts.map((text) => model.known.get(text)), ms });
    }
    return answers;
  },

  /** What the models are fed, for tests: ids of texts by the first model, or the bytes of its square. */
  async fed({ texts, file }) {
    const [{ read, preprocessing }] = models;
    return texts ? texts.map(read) : prepared(await decoded(file), preprocessing);
  },
};

async function tower({ file, inputs, output }) {
  const session = await ort.InferenceSession.create(await fetched(file), { executionProviders: ["wasm"] });
  return { session, inputs, output };
}

/** One input through a tower: its embedding of unit norm, and milliseconds. */
async function embedding(tower, values, shape, texts) {
  const { found, ms } = await run(tower, values, shape, texts);
  const norm = Math.hypot(...found);
  if (!(norm > 0 && Number.isFinite(norm))) throw new Error("the model answers with zeros or with what is no number");
  return { embedding: found.map((one) => one / norm), ms };
}

async function run({ session, inputs, output }, values, shape, texts) {
  const feeds = {};
  for (const { name, dtype } of inputs) {
    const fed = name === "attention_mask" ? mask(values, texts) : values;
    feeds[name] = new ort.Tensor(dtype, dtype === "int64" ? ARRAYS.int64.from(fed, BigInt) : ARRAYS[dtype].from(fed), shape);
  }
  const begin = performance.now();
  const found = Float64Array.from((await session.run(feeds, [output]))[output].data);
  return { found, ms: performance.now() - begin };
}

/** The bytes of a file of this site. Some servers unpack .gz by themselves, so its begin says whether it still is. */
async function fetched(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`${file} cannot be loaded: ${response.status} ${response.statusText}`);
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

self.onmessage = async ({ data: { id, what, of } }) => {
  try {
    self.postMessage({ id, result: await answer[what](of, (told) => self.postMessage({ told })) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
self.postMessage({ told: "" });
