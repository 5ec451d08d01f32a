import type { MessagePort } from 'node:worker_threads'
import { messageOf } from '../../errors/cri-error.ts'
import { AttachPort } from './attach-port.ts'
import { CriFormatter } from './cri-formatter.ts'
import { EntryClock } from './entry-clock.ts'
import { type ByteSink, FifoReader } from './fifo-reader.ts'
import { LogFile } from './log-file.ts'
import type { AttachSpec, LogSpec } from './protocol.ts'
import type { WorkerEnvironment } from './worker-environment.ts'
import { errorFields } from './worker-log.ts'

/**
 * One container's output: its FIFOs, cut into lines, to its log file. What is read is written in the same turn of the event loop;
 * only the beginning of a line whose newline has not come yet stays in memory.
 */
export class LogPump {
  readonly #spec: LogSpec
  readonly #environment: WorkerEnvironment
  readonly #file: LogFile | undefined
  readonly #formatters: CriFormatter[] = []
  readonly #readers: FifoReader[] = []
  readonly #streams: ('stdout' | 'stderr')[] = []
  readonly #attached = new Set<AttachPort>()
  readonly #onEnd: () => void
  #ended = false

  /** Opens everything or throws with everything closed again. `onEnd` is called once all streams are at their end and written. */
  constructor(spec: LogSpec, environment: WorkerEnvironment, onEnd: () => void) {
    this.#spec = spec
    this.#environment = environment
    this.#onEnd = onEnd
    this.#file = spec.logPath === undefined ? undefined : new LogFile(spec.id, spec.logPath, spec.recover, environment)
    try {
      const clock = new EntryClock(environment.wall)
      if (spec.stdoutFifo !== undefined) this.#read('stdout', spec.stdoutFifo, clock)
      if (spec.stderrFifo !== undefined) this.#read('stderr', spec.stderrFifo, clock)
    } catch (error) {
      for (const reader of this.#readers) void reader.close()
      this.#file?.close()
      throw error
    }
    this.#checkEnd()
  }

  /** Lets the end of file come. */
  started(): void {
    for (const reader of this.#readers) reader.release()
  }

  /** What was read so far is in the old file, an unfinished line as a P entry; what is read from now on goes to the new one. */
  reopen(): void {
    this.#file?.reopen(() => this.#finishLines())
    if (this.#ended) this.#file?.close()
  }

  /** Output from now on goes to one more client. `onOver` is called once: `end` after the end of the output, `gone` when the client closed the port. */
  attach(spec: AttachSpec, port: MessagePort, onOver: (how: 'end' | 'gone') => void): void {
    const sinks: (() => void)[] = []
    const client = new AttachPort(port, {
      onSkipped: (bytes) => this.#environment.counters.add('attachSkippedBytes', bytes),
      onOver: (how) => {
        this.#attached.delete(client)
        for (const remove of sinks) remove()
        onOver(how)
      },
    })
    this.#attached.add(client)
    const wanted = this.#readers.flatMap((reader, index) => (spec[this.#streams[index] ?? 'stdout'] ? [{ reader, sink: client.sink(this.#streams[index] === 'stderr' ? 2 : 1) }] : []))
    for (const { reader, sink } of wanted) {
      sinks.push(() => reader.removeSink(sink))
      reader.addSink(sink)
    }
    if (wanted.length === 0) client.close()
  }

  /** Writes the unfinished lines (P: a reader joins them with what a later pump writes) and closes every descriptor. */
  async close(): Promise<void> {
    this.#ended = true
    try {
      this.#finishLines()
    } finally {
      this.#file?.close()
      await Promise.all(this.#readers.map((reader) => reader.close()))
      for (const client of this.#attached) client.close()
    }
  }

  #read(stream: 'stdout' | 'stderr', path: string, clock: EntryClock): void {
    const { environment, file, id } = { environment: this.#environment, file: this.#file, id: this.#spec.id }
    const { counters, log } = environment
    const sinks: ByteSink[] = [{ chunk: (bytes) => counters.add('bytesRead', bytes.length), end: () => undefined }]
    if (file !== undefined) {
      const formatter = new CriFormatter(stream, this.#spec.maxLineBytes, {
        clock,
        output: environment.output,
        counters,
        write: (bytes, length) => file.append(bytes, length),
      })
      this.#formatters.push(formatter)
      sinks.push({ chunk: (bytes) => formatter.chunk(bytes), end: () => formatter.finish() })
    }
    this.#streams.push(stream)
    this.#readers.push(new FifoReader(path, sinks, {
      descriptors: environment.descriptors,
      readBuffer: environment.readBuffer,
      onEnd: (error) => {
        if (error !== undefined) log('error', { container: id, stream, ...errorFields(error) }, `${stream} of container ${id}: ${error.message}`)
        this.#checkEnd()
      },
      onSinkFailure: (error) => {
        log('error', { container: id, stream, ...errorFields(error) },
          `the log of container ${id} (${stream}) has stopped by a fault of this service: ${messageOf(error)}; the container goes on`)
      },
    }))
  }

  #finishLines(): void {
    for (const formatter of this.#formatters) formatter.finish()
  }

  #checkEnd(): void {
    if (this.#ended || this.#readers.some((reader) => !reader.ended)) return
    this.#ended = true
    this.#file?.close()
    this.#onEnd()
  }
}
