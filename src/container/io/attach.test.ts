import assert from 'node:assert/strict'
import { closeSync, constants, openSync, readFileSync, renameSync, writeSync } from 'node:fs'
import { describe, test } from 'node:test'
import { MessageChannel, type MessagePort } from 'node:worker_threads'
import type { AttachOutputMessage } from '../../streaming/types.ts'
import { type Attachment, IoWorker } from './client.ts'
import { joined, openDescriptors, readEntries, recordingLogger, Scratch, shell, until } from './support.fixture.ts'

/** A client as the streaming worker is one; `acknowledges` is whether it takes what it gets. */
class Client {
  readonly received = { 1: '', 2: '' }
  bytes = 0
  skipped = 0
  ended = false
  readonly attachment: Attachment
  readonly #port: MessagePort

  private constructor(attachment: Attachment, port: MessagePort, acknowledges: boolean) {
    this.attachment = attachment
    this.#port = port
    port.on('message', (message: AttachOutputMessage) => {
      if ('end' in message) this.ended = true
      else if ('skipped' in message) this.skipped += message.skipped
      else {
        this.bytes += message.bytes.length
        if (this.bytes < 10_000_000) this.received[message.stream] += Buffer.from(message.bytes).toString()
        if (acknowledges) this.acknowledge(message.bytes.length)
      }
    })
  }

  static async attach(io: IoWorker, id: string, streams = { stdout: true, stderr: true }, acknowledges = true): Promise<Client> {
    const { port1, port2 } = new MessageChannel()
    return new Client(await io.attach(id, streams, port1), port2, acknowledges)
  }

  acknowledge(bytes: number): void {
    this.#port.postMessage({ acked: bytes })
  }

  leave(): void {
    this.#port.close()
  }
}

describe('clients that are attached to a container', () => {
  test('several get what comes from then on, each the streams that it asked for, and the end', async () => {
    using scratch = new Scratch()
    const { log, lines } = recordingLogger()
    await using io = await IoWorker.start({ log })
    const [stdoutFifo, stderrFifo, logPath] = [scratch.fifo('out'), scratch.fifo('err'), scratch.file('0.log')]
    await io.openLog({ id: 'a', stdoutFifo, stderrFifo, logPath, maxLineBytes: 100 })
    await shell('echo before >"$1"', stdoutFifo).ended
    await until(() => io.stats().entries === 1, 'the first line in the log')
    const both = await Client.attach(io, 'a')
    const errors = await Client.attach(io, 'a', { stdout: false, stderr: true })
    await shell('echo out >"$1"; echo err >"$2"', stdoutFifo, stderrFifo).ended
    await until(() => both.received[1] === 'out\n' && both.received[2] === 'err\n' && errors.received[2] === 'err\n', 'both streams')
    // The log moves to another file: nobody who is attached sees that.
    renameSync(logPath, scratch.file('1.log'))
    await io.reopenLog('a')
    await shell('printf "no newline" >"$1"', stdoutFifo).ended
    io.started('a')
    assert.deepEqual(await Promise.all([both.attachment.over, errors.attachment.over]), ['end', 'end'])
    await until(() => both.ended && errors.ended, 'the end')
    assert.deepEqual(both.received, { 1: 'out\nno newline', 2: 'err\n' })
    assert.deepEqual(errors.received, { 1: '', 2: 'err\n' })
    const late = await Client.attach(io, 'a')
    assert.equal(await late.attachment.over, 'end')
    assert.equal(joined(readEntries(scratch.file('1.log'), logPath)), 'before\nout\nno newline')
    assert.equal(io.stats().attached, 0)
    await io.closeLog('a')
    await assert.rejects(Client.attach(io, 'a'), { reason: 'NOT_FOUND' })
    assert.deepEqual(lines, [])
  })

  test('one that takes nothing misses output and is told how much; the log and the other client have all of it', async () => {
    using scratch = new Scratch()
    await using io = await IoWorker.start({ log: recordingLogger().log })
    const [stdoutFifo, logPath] = [scratch.fifo('out'), scratch.file('0.log')]
    await io.openLog({ id: 'a', stdoutFifo, stderrFifo: undefined, logPath, maxLineBytes: -1 })
    const slow = await Client.attach(io, 'a', undefined, false)
    const fast = await Client.attach(io, 'a')
    const lineCount = 2_000_000
    await shell('exec >"$1"; seq 1 "$2"', stdoutFifo, `${lineCount}`).ended
    const total = Array.from({ length: lineCount }, (_, index) => `${index + 1}\n`.length).reduce((sum, length) => sum + length, 0)
    await until(() => fast.bytes + fast.skipped === total || io.stats().bytesRead === total, 'everything to be read')
    assert.ok(slow.bytes > 0 && slow.bytes <= 4 * 1024 * 1024, `${slow.bytes} bytes are under way`)
    assert.equal(slow.skipped, 0, 'the gap is not over')
    slow.acknowledge(slow.bytes)
    await until(() => slow.skipped > 0, 'the gap to be told of')
    await shell('echo caught up >"$1"', stdoutFifo).ended
    await until(() => slow.received[1].endsWith('caught up\n'), 'output after the gap')
    assert.equal(slow.bytes + slow.skipped, total + 'caught up\n'.length)
    assert.equal(io.stats().attachSkippedBytes, slow.skipped + fast.skipped)
    io.started('a')
    assert.equal(await io.drained('a', 60_000), 'eof')
    assert.equal(readFileSync(logPath, 'utf8').split('\n').length, lineCount + 2)
    await io.closeLog('a')
  })

  test('one that leaves is forgotten, a thousand times, and leaves no descriptor', async () => {
    using scratch = new Scratch()
    await using io = await IoWorker.start({ log: recordingLogger().log })
    const stdoutFifo = scratch.fifo('out')
    await io.openLog({ id: 'a', stdoutFifo, stderrFifo: undefined, logPath: undefined, maxLineBytes: -1 })
    const before = openDescriptors()
    const writer = openSync(stdoutFifo, constants.O_WRONLY)
    for (let round = 0; round < 100; round++) {
      const clients = await Promise.all(Array.from({ length: 10 }, () => Client.attach(io, 'a')))
      writeSync(writer, 'x')
      for (const client of clients) client.leave()
      assert.deepEqual(new Set(await Promise.all(clients.map(({ attachment }) => attachment.over))), new Set(['gone']))
    }
    closeSync(writer)
    assert.equal(io.stats().attached, 0)
    assert.equal(openDescriptors(), before)
    await io.closeLog('a')
  })

  test('closing the log is the end for them; the death of the worker is a loss', async () => {
    using scratch = new Scratch()
    await using io = await IoWorker.start({ log: recordingLogger().log, entry: new URL('crashing-worker.fixture.ts', import.meta.url) })
    const open = (id: string): Promise<void> => io.openLog({ id, stdoutFifo: scratch.fifo(id), stderrFifo: undefined, logPath: undefined, maxLineBytes: -1 })
    await open('a')
    await open('b')
    const [first, second] = [await Client.attach(io, 'a'), await Client.attach(io, 'b')]
    await io.closeLog('a')
    assert.equal(await first.attachment.over, 'end')
    await assert.rejects(io.capture({ id: 'crash', stdoutFifo: scratch.fifo('crash'), stderrFifo: undefined, limitBytes: 1000 }))
    assert.equal(await second.attachment.over, 'lost')
    await until(() => io.stats().crashes === 1, 'the crash')
    assert.equal(second.ended, false)
    await io.closeLog('b').catch(() => undefined)
  })
})
