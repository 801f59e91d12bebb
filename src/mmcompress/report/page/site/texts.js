// Texts as the model reads them: what mmcompress/runtime/tokenize.py does with the `tokenizers` library.
//
// The tokenizer is @huggingface/tokenizers. The page's maker has looked whether it reads every kind of rule that this
// tokenizer.json has as Python does. Two things are evened out here: JavaScript lowers a sigma at the end of a word to
// another letter, and letters of two UTF-16 units are no Chinese ones to it.

import { Tokenizer } from "./vendor/tokenizers.js";

const RARE_CHINESE = /[\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

/** A tokenizer.json and the rule beside it -> a function from a text to its `context` ids. */
export function reader(tokenizerJson, rule) {
  const tokenizer = new Tokenizer(tokenizerJson, {});
  const lowers = JSON.stringify(tokenizerJson.normalizer ?? null).match(/"Lowercase"|"lowercase":true/);
  const splitsChinese = JSON.stringify(tokenizerJson.normalizer ?? null).includes('"handle_chinese_chars":true');
  const room = rule.context - rule.begin.length - rule.end.length;
  return (text) => {
    let spelled = rule.lowercase ? Array.from(text, (letter) => letter.toLowerCase()).join("") : text;
    if (rule.prefix) spelled = rule.prefix + spelled.replaceAll(rule.prefix, " ");
    if (lowers) spelled = spelled.replaceAll("Σ", "σ");
    if (splitsChinese) spelled = spelled.replace(RARE_CHINESE, " $& ");
    const { ids } = tokenizer.encode(spelled, { add_special_tokens: false });
    const out = new Int32Array(rule.context).fill(rule.pad);
    out.set([...rule.begin, ...ids.slice(0, room), ...rule.end]);
    return out;
  };
}

/** 1 for a text with its end token, 0 for what fills it up; as `attention_mask` in Python. */
export function mask(ids, rule) {
  if (!rule.mask) return new Int32Array(ids.length).fill(1);
  let filled = ids.length;
  while (filled > 0 && ids[filled - 1] === rule.pad) filled--;
  return Int32Array.from(ids, (_, i) => (i < filled + (rule.pad === rule.eos) ? 1 : 0));
}
