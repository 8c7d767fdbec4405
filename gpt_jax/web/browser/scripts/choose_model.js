// The choice between the two ways to run a model: typed arrays on the CPU, and shaders on a GPU.

import { Gpu } from './gpu.js';
import { GpuModel, obstacleOf } from './gpu_model.js';
import { Model } from './model.js';

const LEAST = 2e6; // parameters: smaller models need a few milliseconds per token on a CPU
const ROUNDS = 3; // single tokens that are timed

/**
 * Returns the model on what runs it faster, with the name of that.
 *
 * `wanted` is 'cpu', 'webgpu', or null for a choice by measurement. Software that acts as a GPU is
 * only taken if it is wanted.
 */
export async function chooseModel(config, weights, wanted = null) {
  const cpu = () => ({ model: new Model(config, weights), backend: 'the CPU' });
  if (wanted === 'cpu' || (!wanted && (weights.count < LEAST || obstacleOf(config)))) return cpu();
  try {
    const onGpu = { model: await openModel(config, weights, Boolean(wanted)), backend: 'WebGPU' };
    if (wanted) return onGpu;
    const onCpu = cpu();
    if (await secondsOf(onGpu.model) < await secondsOf(onCpu.model)) return onGpu;
    onGpu.model.close();
    return onCpu;
  } catch (error) {
    if (wanted) throw error;
    return cpu();
  }
}

async function openModel(config, weights, takesSoftware) {
  const obstacle = obstacleOf(config), gpu = obstacle ? null : await Gpu.open({ takesSoftware });
  if (!gpu) throw new Error(`WebGPU cannot run this model: ${obstacle || 'the browser has no adapter'}`);
  return gpu.checked(async () => {
    const model = new GpuModel(gpu, config, weights);
    for (const ids of [[0], [0, 0]]) model.forward(ids, 0); // both kinds of products
    await model.nextLogits();
    return model;
  });
}

/** Returns the seconds of a token; the first one is not timed. */
async function secondsOf(model) {
  let began = 0;
  for (let round = 0; round <= ROUNDS; round++) {
    if (round === 1) began = performance.now();
    model.forward([0], round);
    await model.nextLogits();
  }
  return (performance.now() - began) / 1e3 / ROUNDS;
}
