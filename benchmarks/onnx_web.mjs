// Runs one exported model in onnxruntime-web (WebAssembly) or onnxruntime-node, for onnx_runtimes.py.
//     node onnx_web.mjs FOLDER_WITH_NODE_MODULES PACKAGE MODEL TASK RESULT
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, name, model, task, result] = process.argv.slice(2);
const require = createRequire(join(folder, "node_modules", "index.js"));
const loaded = await import(pathToFileURL(require.resolve(name)));
const ort = loaded.InferenceSession ? loaded : loaded.default;
if (ort.env?.wasm) ort.env.wasm.numThreads = 1;

const { step, repeats, inputs } = JSON.parse(readFileSync(task, "utf8"));
const arrays = {};
for (const [key, { dims, data }] of Object.entries(inputs)) {
  const bytes = Buffer.from(data, "base64");
  const values = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  arrays[key] = new ort.Tensor("float32", values, dims);
}

const start = performance.now();
const options = { intraOpNumThreads: 1, executionProviders: name === "onnxruntime-web" ? ["wasm"] : ["cpu"] };
const session = await ort.InferenceSession.create(readFileSync(model), options);
const load = performance.now() - start;

async function run() {
  if (!step) return session.run(arrays);
  const { x, ...states } = arrays; // x (1, time, input_size)
  const width = x.dims.slice(2).reduce((a, b) => a * b, 1);
  const records = [];
  let found;
  for (let t = 0; t < x.dims[1]; t++) {
    const frame = new ort.Tensor("float32", x.data.slice(t * width, (t + 1) * width), [1, ...x.dims.slice(2)]);
    found = await session.run({ x: frame, ...states });
    for (const key of Object.keys(states)) states[key] = found[`${key}_next`];
    records.push(found.y);
  }
  const y = new Float32Array(records.flatMap((record) => [...record.data]));
  return { ...found, y: new ort.Tensor("float32", y, [1, records.length, ...records[0].dims.slice(1)]) };
}

const times = [];
let found;
for (let i = 0; i <= repeats; i++) {
  const before = performance.now();
  found = await run();
  if (i) times.push(performance.now() - before);
}
const outputs = {};
for (const [key, { dims, data }] of Object.entries(found)) {
  outputs[key] = { dims, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64") };
}
writeFileSync(result, JSON.stringify({ load, times, outputs }));
