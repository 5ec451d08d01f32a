import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { type Capture, IoWorker } from './client.ts'
import { CaptureBuffer } from './exec-capture.ts'
import { Scratch, openDescriptors, recordingLogger, shell } from './support.fixture.ts'

const mib = 1024 * 1024
const { log, lines } = recordingLogger()
let io: IoWorker
before(async () => {
  io = await IoWorker.start({ log })
})
after(async () => {
  await io.close()
  assert.deepEqual(lines, [])
})

interface Pipes {
  readonly out: string
  readonly err: string
  readonly capture: Capture
}

async function open(scratch: Scratch, limitBytes = 16 * mib): Promise<Pipes> {
  const [out, err] = [scratch.fifo('out'), scratch.fifo('err')]
  return { out, err, capture: await io.capture({ id: 'x', stdoutFifo: out, stderrFifo: err, limitBytes }) }
}

test('both streams, byte for byte', async () => {
  using scratch = new Scratch()
  const { out, err, capture } = await open(scratch)
  const bytes = randomBytes(3 * mib + 17)
  writeFileSync(scratch.file('input'), bytes)
  await shell('cat "$3" >"$1"; printf oops >"$2"', out, err, scratch.file('input')).ended
  capture.started()
  const result = await capture.result({ drainTimeoutMs: 60_000 })
  assert.ok(result.stdout.equals(bytes))
  assert.equal(result.stderr.toString(), 'oops')
  assert.deepEqual({ ...result, stdout: 0, stderr: 0 }, { stdout: 0, stderr: 0, truncated: { stdout: false, stderr: false }, timedOut: false })
  assert.equal(io.stats().captures, 0)
})

test('no output at all', async () => {
  using scratch = new Scratch()
  const { capture } = await open(scratch)
  const result = await capture.result({ drainTimeoutMs: 60_000 })
  assert.deepEqual([result.stdout.length, result.stderr.length, result.timedOut], [0, 0, false])
})

test('a terminal has one stream', async () => {
  using scratch = new Scratch()
  const out = scratch.fifo('out')
  const capture = await io.capture({ id: 't', stdoutFifo: out, stderrFifo: undefined, limitBytes: mib })
  await shell('echo tty >"$1"', out).ended
  assert.equal((await capture.result({ drainTimeoutMs: 60_000 })).stdout.toString(), 'tty\n')
})

test('beyond the limit the process goes on and the rest is dropped, per stream', async () => {
  using scratch = new Scratch()
  const { out, err, capture } = await open(scratch, 16 * mib)
  const { bytesRead } = io.stats()
  await shell('head -c 16777216 /dev/zero >"$2" & head -c 50000000 /dev/zero >"$1"; wait', out, err).ended
  const result = await capture.result({ drainTimeoutMs: 60_000 })
  assert.deepEqual([result.stdout.length, result.stderr.length], [16 * mib, 16 * mib])
  assert.deepEqual(result.truncated, { stdout: true, stderr: false })
  assert.equal(result.timedOut, false)
  assert.equal(io.stats().bytesRead - bytesRead, 50_000_000 + 16 * mib)
})

test('a background child that keeps the pipe open: what arrived, after the timeout', async () => {
  using scratch = new Scratch()
  const { out, err, capture } = await open(scratch)
  await shell('exec >"$1" 2>"$2"; sleep 600 & echo $!; echo done >&2', out, err).ended
  capture.started()
  const result = await capture.result({ drainTimeoutMs: 300 })
  const child = Number(result.stdout.toString())
  try {
    assert.match(readFileSync(`/proc/${child}/cmdline`, 'utf8'), /sleep/)
    assert.equal(result.timedOut, true)
    assert.equal(result.stderr.toString(), 'done\n')
  } finally {
    process.kill(child, 'SIGKILL')
  }
})

test('close without a result, twice, and 200 times', async () => {
  using scratch = new Scratch()
  const [out, err] = [scratch.fifo('out'), scratch.fifo('err')]
  const descriptors = openDescriptors()
  for (let i = 0; i < 200; i++) {
    const capture = await io.capture({ id: `x${i}`, stdoutFifo: out, stderrFifo: err, limitBytes: mib })
    if (i % 2 === 0) await capture.result({ drainTimeoutMs: 60_000 })
    await capture.close()
    await capture.close()
    await assert.rejects(capture.result({ drainTimeoutMs: 0 }), /lost/)
  }
  assert.equal(openDescriptors(), descriptors)
})

test('a FIFO that is not there', async () => {
  using scratch = new Scratch()
  const descriptors = openDescriptors()
  const out = scratch.fifo('out')
  await assert.rejects(io.capture({ id: 'n', stdoutFifo: out, stderrFifo: scratch.file('none'), limitBytes: mib }), /cannot open the FIFO .*none/)
  assert.equal(io.stats().captures, 0)
  // The answer to a later call says that the descriptors are closed.
  await (await io.capture({ id: 'n', stdoutFifo: out, stderrFifo: undefined, limitBytes: mib })).close()
  assert.equal(openDescriptors(), descriptors)
})

test('single bytes are kept in one growing buffer', () => {
  const buffer = new CaptureBuffer(10_000)
  for (let i = 0; i < 10_001; i++) {
    assert.equal(buffer.truncated, false)
    buffer.chunk(Buffer.of(i & 0xff))
  }
  assert.equal(buffer.truncated, true)
  const taken = Buffer.from(buffer.take())
  assert.equal(taken.length, 10_000)
  assert.ok(taken.every((byte, i) => byte === (i & 0xff)))
})
