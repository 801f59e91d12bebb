// The page's side of the worker: questions as promises, and what follows from embeddings.

const waiting = new Map();
let number = 0;

/** Starts the worker. From a blob, as only so the page's policy binds it as well: it too can reach this site alone. */
export function started(tell) {
  const source = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const place = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const worker = new Worker(place, { type: "module" });
  return new Promise((resolve, reject) => {
    worker.onerror = () => reject(new Error("the worker does not start: this browser is too old, or a file is missing"));
    worker.onmessage = ({ data: { id, result, error, told } }) => {
      if (told === "") resolve((what, of) => asked(worker, what, of));
      else if (told !== undefined) tell(told);
      else {
        const { answer, refuse } = waiting.get(id);
        waiting.delete(id);
        error === undefined ? answer(result) : refuse(new Error(error));
      }
    };
  });
}

function asked(worker, what, of) {
  return new Promise((answer, refuse) => {
    waiting.set(++number, { answer, refuse });
    worker.postMessage({ id: number, what, of });
  });
}

/** One embedding against others. */
export const cosines = (one, others) => others.map((other) => other.reduce((sum, value, i) => sum + value * one[i], 0));

/** Which label fits an image: of each model the shares of all labels, the likeliest first, with its times. */
export async function classified(ask, models, file, labels, template) {
  const texts = await ask("texts", labels.map((label) => template.split("{}").join(label)));
  const images = await ask("image", file);
  return models.map(({ name, scale }, at) => {
    const shares = softmax(cosines(images[at].embedding, texts[at].embeddings).map((one) => scale * one));
    const ranked = labels.map((label, i) => ({ label, share: shares[i] })).sort((a, b) => b.share - a.share);
    return { name, shares: ranked, image_ms: images[at].ms, prepare_ms: images[at].prepare_ms, text_ms: texts[at].ms };
  });
}

/** Which pictures fit a text: of each model the places of the best in `pictures`, with their cosines. */
export async function found(ask, models, text, pictures) {
  const texts = await ask("texts", [text]);
  return models.map(({ name }, at) => {
    const scores = cosines(texts[at].embeddings[0], pictures.map((answers) => answers[at].embedding));
    const matches = scores.map((cosine, place) => ({ place, cosine })).sort((a, b) => b.cosine - a.cosine);
    return { name, matches, text_ms: texts[at].ms };
  });
}

function softmax(logits) {
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const shares = logits.map((logit) => Math.exp(logit - highest));
  const sum = shares.reduce((a, b) => a + b);
  return shares.map((share) => share / sum);
}
