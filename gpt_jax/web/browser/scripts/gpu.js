// A GPU: its buffers, and operations on them, each a shader with its buffers.

export class Gpu {
  /** Opens the GPU of this browser; null if there is none, or only a program that acts as one. */
  static async open({ takesSoftware }) {
    const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
    if (!adapter || (adapter.info.isFallbackAdapter && !takesSoftware)) return null;
    // The defaults allow 128 MiB per tensor.
    const { maxBufferSize, maxStorageBufferBindingSize } = adapter.limits;
    return new Gpu(await adapter.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } }));
  }

  constructor(device) {
    this.device = device;
    this.pipelines = new Map();
    device.lost.then(() => { this.isLost = true; });
  }

  /** Returns a buffer of a number of bytes. */
  empty(size) {
    const { STORAGE, COPY_SRC, COPY_DST } = GPUBufferUsage;
    return this.device.createBuffer({ size, usage: STORAGE | COPY_SRC | COPY_DST });
  }

  /** Returns a buffer of float32. */
  floats(count) {
    return this.empty(4 * count);
  }

  /** Returns a buffer with the bytes of a typed array. */
  filled(values) {
    const buffer = this.empty(values.byteLength);
    this.write(buffer, values);
    return buffer;
  }

  write(buffer, values, count = values.length) {
    this.device.queue.writeBuffer(buffer, 0, values, 0, count);
  }

  /**
   * Returns an operation: a shader, its buffers in the order of their bindings, and a function from
   * the number of tokens to the workgroups. Equal shaders are compiled once.
   */
  operation(code, buffers, groups) {
    if (!this.pipelines.has(code)) {
      const module = this.device.createShaderModule({ code });
      this.pipelines.set(code, this.device.createComputePipeline({ layout: 'auto', compute: { module } }));
    }
    const pipeline = this.pipelines.get(code);
    const entries = buffers.map((buffer, binding) => ({ binding, resource: { buffer } }));
    return { pipeline, groups, bindings: this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }) };
  }

  /** Returns what `build` returns. Throws the first error of the GPU, which otherwise only the console has. */
  async checked(build) {
    const kinds = ['validation', 'out-of-memory', 'internal'];
    kinds.forEach((kind) => this.device.pushErrorScope(kind));
    const built = await build();
    const errors = await Promise.all(kinds.map(() => this.device.popErrorScope()));
    const error = errors.find(Boolean);
    if (error) throw new Error(`the GPU cannot run this model: ${error.message}`);
    return built;
  }

  /** Returns float32 values of a buffer, after all work that was submitted. */
  async read(buffer, count) {
    try {
      await buffer.mapAsync(GPUMapMode.READ, 0, 4 * count);
    } catch (error) {
      throw this.isLost ? new Error('the browser took the GPU away; load this page again') : error;
    }
    const values = new Float32Array(buffer.getMappedRange(0, 4 * count)).slice();
    buffer.unmap();
    return values;
  }

  /** Returns a buffer that `read` takes. */
  readable(count) {
    return this.device.createBuffer({ size: 4 * count, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  }
}

/** Adds operations on a number of tokens to a pass. */
export function dispatch(pass, operations, count) {
  for (const { pipeline, bindings, groups } of operations) {
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindings);
    pass.dispatchWorkgroups(...groups(count));
  }
}
