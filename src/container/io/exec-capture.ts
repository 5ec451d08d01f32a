import { messageOf } from '../../errors/cri-error.ts'
import { type ByteSink, FifoReader } from './fifo-reader.ts'
import type { CaptureSpec, CapturedOutput } from './protocol.ts'
import type { WorkerEnvironment } from './worker-environment.ts'
import { errorFields } from './worker-log.ts'

const firstBytes = 4096

/** Keeps the first `limitBytes` of a stream in one buffer that grows by doubling, however small the pieces are. */
export class CaptureBuffer implements ByteSink {
  readonly #limitBytes: number
  #memory = new ArrayBuffer(0)
  #length = 0
  #truncated = false

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes
  }

  get truncated(): boolean {
    return this.#truncated
  }

  chunk(bytes: Buffer): void {
    const room = this.#limitBytes - this.#length
    if (bytes.length > room) this.#truncated = true
    const count = Math.min(room, bytes.length)
    if (count <= 0) return
    if (this.#length + count > this.#memory.byteLength) {
      const wanted = Math.max(this.#length + count, this.#memory.byteLength * 2, firstBytes)
      this.#memory = this.#memory.transfer(Math.min(wanted, this.#limitBytes))
    }
    new Uint8Array(this.#memory).set(count === bytes.length ? bytes : bytes.subarray(0, count), this.#length)
    this.#length += count
  }

  end(): void {}

  /** What was kept, in a buffer of exactly its size; the capture is empty afterwards. */
  take(): ArrayBuffer {
    const taken = this.#memory.transfer(this.#length)
    this.#memory = new ArrayBuffer(0)
    this.#length = 0
    return taken
  }
}

/** The output of one exec process. Always drained, so that the process never blocks on a full pipe. */
export class ExecCapture {
  readonly #stdout: CaptureBuffer
  readonly #stderr: CaptureBuffer
  readonly #readers: FifoReader[] = []
  readonly #end = Promise.withResolvers<void>()

  /** Opens the FIFOs or throws with everything closed again. */
  constructor(spec: CaptureSpec, environment: WorkerEnvironment) {
    this.#stdout = new CaptureBuffer(spec.limitBytes)
    this.#stderr = new CaptureBuffer(spec.limitBytes)
    const streams = [['stdout', spec.stdoutFifo, this.#stdout], ['stderr', spec.stderrFifo, this.#stderr]] as const
    try {
      for (const [stream, path, buffer] of streams) {
        if (path === undefined) continue
        const count: ByteSink = { chunk: (bytes) => environment.counters.add('bytesRead', bytes.length), end: () => undefined }
        const report = (error: unknown): void => {
          environment.log('error', { exec: spec.id, stream, ...errorFields(error) }, `${stream} of exec ${spec.id} is incomplete: ${messageOf(error)}`)
        }
        this.#readers.push(new FifoReader(path, [count, buffer], {
          descriptors: environment.descriptors,
          readBuffer: environment.readBuffer,
          onEnd: (error) => {
            if (error !== undefined) report(error)
            this.#checkEnd()
          },
          onSinkFailure: report,
        }))
      }
    } catch (error) {
      for (const reader of this.#readers) void reader.close()
      throw error
    }
    this.#checkEnd()
  }

  /** Lets the end of file come. */
  started(): void {
    for (const reader of this.#readers) reader.release()
  }

  /** The process has exited: waits for the end of both streams, at most `drainTimeoutMs`, then closes and hands over what arrived. */
  async result(drainTimeoutMs: number): Promise<CapturedOutput> {
    this.started()
    const timeout = Promise.withResolvers<void>()
    const timer = setTimeout(timeout.resolve, drainTimeoutMs)
    await Promise.race([this.#end.promise, timeout.promise])
    clearTimeout(timer)
    const timedOut = !this.#atEnd
    const truncated = { stdout: this.#stdout.truncated, stderr: this.#stderr.truncated }
    await this.close()
    return { stdout: this.#stdout.take(), stderr: this.#stderr.take(), truncated, timedOut }
  }

  /** Closes every descriptor; a `result` that waits gets what has arrived. */
  async close(): Promise<void> {
    await Promise.all(this.#readers.map((reader) => reader.close()))
    this.#end.resolve()
  }

  get #atEnd(): boolean {
    return this.#readers.every((reader) => reader.ended)
  }

  #checkEnd(): void {
    if (this.#atEnd) this.#end.resolve()
  }
}
