// onnxruntime-web, from the files that the site itself serves.

const FOLDER = new URL("../runtime/", import.meta.url);
const MODULES = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };

export const NAMES = { wasm: "WebAssembly", webgpu: "WebGPU" };

/** Throws an Error where there is nothing to run in. */
export function requireWebAssembly() {
  if (typeof WebAssembly !== "object") {
    throw new Error("This browser has no WebAssembly, which the neuron runs in.");
  }
}

/** The runtime for a provider, "wasm" or "webgpu". Throws an Error whose message a visitor can read. */
export async function loadRuntime(provider) {
  requireWebAssembly();
  let ort;
  try {
    ort = await import(new URL(MODULES[provider], FOLDER).href);
  } catch (error) {
    throw new Error(
      "The runtime, onnxruntime-web, is not on this site: it was built without a network. " +
        "With one, python docs/live/build.py FOLDER fetches it.",
      { cause: error },
    );
  }
  ort.env.wasm.wasmPaths = FOLDER.href;
  // Eight thousand parameters leave nothing to share out, and threads would need headers that most servers do not send.
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  return ort;
}

/** Whether the browser lends a GPU. */
export async function hasGPU() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false; // some browsers have the name and refuse the call
  }
}
