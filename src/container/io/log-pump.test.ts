import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants, closeSync, mkdirSync, openSync, readFileSync, renameSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Code } from '../../errors/cri-error.ts'
import { IoWorker } from './client.ts'
import { Scratch, type Entry, joined, openDescriptors, parseEntries, readEntries, recordingLogger, shell, until } from './support.fixture.ts'

/** Lines that count: whatever is lost, doubled or swapped shows. */
const numbers = (count: number): string => Array.from({ length: count }, (_, i) => `${i + 1}\n`).join('')
/** Writes 1…$2 to the FIFO $1 as fast as it can, holding it open both ways like a shim until its stdin ends. */
const shimWriter = 'exec 3<>"$1"; seq 1 "$2" >&3; read _'

describe('log pumps', () => {
  const { log, lines } = recordingLogger()
  let io: IoWorker
  before(async () => {
    io = await IoWorker.start({ log })
  })
  after(async () => {
    await io.close()
    assert.deepEqual(lines, [], 'nothing to complain about')
  })

  test('both streams arrive in one log; the end comes after started() only', async () => {
    using scratch = new Scratch()
    const [stdoutFifo, stderrFifo, logPath] = [scratch.fifo('out'), scratch.fifo('err'), scratch.file('0.log')]
    await io.openLog({ id: 'a', stdoutFifo, stderrFifo, logPath, maxLineBytes: 10 })
    await shell('echo hello >"$1"', stdoutFifo).ended
    // A pump without a writing end of its own would have seen the end of both streams here.
    await shell('printf "0123456789abc\\nrest" >"$1"', stderrFifo).ended
    await shell('echo world >"$1"', stdoutFifo).ended
    io.started('a')
    assert.equal(await io.drained('a', 60_000), 'eof')
    const entries = readEntries(logPath)
    const of = (stream: string): string[] => entries.filter((entry) => entry.stream === stream).map((entry) => `${entry.tag} ${entry.content}`)
    assert.deepEqual(of('stdout'), ['F hello', 'F world'])
    assert.deepEqual(of('stderr'), ['P 0123456789', 'F abc', 'P rest'])
    const stamps = entries.map((entry) => entry.stamp)
    assert.deepEqual(stamps, [...stamps].sort())
    assert.equal(new Set(stamps).size, stamps.length)
    await io.closeLog('a')
    assert.equal(io.stats().logs, 0)
  })

  test('drained: timeout while something holds the FIFO, eof once it has let go; eof for what is not open', async () => {
    using scratch = new Scratch()
    const [stdoutFifo, logPath] = [scratch.fifo('out'), scratch.file('0.log')]
    await io.openLog({ id: 'd', stdoutFifo, stderrFifo: undefined, logPath, maxLineBytes: -1 })
    const holder = openSync(stdoutFifo, constants.O_WRONLY)
    assert.equal(await io.drained('d', 20), 'timeout')
    writeSync(holder, 'late')
    closeSync(holder)
    assert.equal(await io.drained('d', 60_000), 'eof')
    assert.equal(joined(readEntries(logPath)), 'late')
    await io.closeLog('d')
    assert.equal(await io.drained('d', 0), 'eof')
  })

  test('a FIFO whose writers are gone already ends at once', async () => {
    using scratch = new Scratch()
    await io.openLog({ id: 'g', stdoutFifo: scratch.fifo('out'), stderrFifo: scratch.fifo('err'), logPath: scratch.file('0.log'), maxLineBytes: -1, recover: true })
    assert.equal(await io.drained('g', 60_000), 'eof')
    await io.closeLog('g')
  })

  test('without a log path everything is read and thrown away', async () => {
    using scratch = new Scratch()
    const stdoutFifo = scratch.fifo('out')
    const { bytesRead } = io.stats()
    await io.openLog({ id: 'n', stdoutFifo, stderrFifo: undefined, logPath: undefined, maxLineBytes: -1 })
    await shell('head -c 3000000 /dev/zero >"$1"', stdoutFifo).ended
    assert.equal(await io.drained('n', 60_000), 'eof')
    assert.equal(io.stats().bytesRead - bytesRead, 3_000_000)
    await io.reopenLog('n')
    await io.closeLog('n')
  })

  test('flat out, four at a time: every line of every one', async () => {
    using scratch = new Scratch()
    const count = 1_000_000
    const expected = Buffer.from(numbers(count))
    const ids = ['f1', 'f2', 'f3', 'f4']
    await Promise.all(ids.map(async (id) => {
      const fifo = scratch.fifo(id)
      await io.openLog({ id, stdoutFifo: fifo, stderrFifo: undefined, logPath: scratch.file(`${id}.log`), maxLineBytes: 16384 })
      using writer = shell('seq 1 "$2" >"$1"', fifo, String(count))
      await writer.ended
    }))
    for (const id of ids) {
      assert.equal(await io.drained(id, 60_000), 'eof')
      assert.ok(Buffer.from(joined(readEntries(scratch.file(`${id}.log`))), 'latin1').equals(expected), `${id} lost something`)
      await io.closeLog(id)
    }
    assert.equal(io.stats().droppedBytes, 0)
  })

  test('one that never stops printing does not starve another', async () => {
    using scratch = new Scratch()
    const [loud, quiet] = [scratch.fifo('loud'), scratch.fifo('quiet')]
    await io.openLog({ id: 'loud', stdoutFifo: loud, stderrFifo: undefined, logPath: scratch.file('loud.log'), maxLineBytes: 16384 })
    await io.openLog({ id: 'quiet', stdoutFifo: quiet, stderrFifo: undefined, logPath: scratch.file('quiet.log'), maxLineBytes: 16384 })
    {
      using writer = shell('exec yes >"$1"', loud)
      writer.ended.catch(() => undefined)
      await until(() => statSync(scratch.file('loud.log')).size > 1_000_000, 'the loud one')
      for (let i = 1; i <= 20; i++) {
        await shell('echo "$2" >"$1"', quiet, String(i)).ended
        await until(() => readEntries(scratch.file('quiet.log')).length === i, 'the line of the quiet one')
      }
      assert.equal(writer.child.exitCode, null)
    }
    assert.equal(await io.drained('loud', 60_000), 'eof')
    await io.closeLog('loud')
    await io.closeLog('quiet')
  })

  test('reopened again and again while it is written flat out: not a byte lost, nothing old in the new file', async () => {
    using scratch = new Scratch()
    const count = 2_000_000
    const [fifo, path] = [scratch.fifo('out'), scratch.file('0.log')]
    await io.openLog({ id: 'r', stdoutFifo: fifo, stderrFifo: undefined, logPath: path, maxLineBytes: 16384 })
    using writer = shell('seq 1 "$2" >"$1"', fifo, String(count))
    const writing = (): boolean => writer.child.exitCode === null
    const old: string[] = []
    while (writing() && old.length < 100) {
      const name = scratch.file(`0.log.${old.length}`)
      renameSync(path, name)
      old.push(name)
      await io.reopenLog('r')
      const { size } = statSync(name)
      await until(() => statSync(path).size > 0 || !writing(), 'output in the new file')
      assert.equal(statSync(name).size, size, 'nothing goes to the old file after the call')
    }
    await writer.ended
    assert.equal(await io.drained('r', 60_000), 'eof')
    assert.ok(old.length > 3, 'the writer was too quick for this test')
    assert.ok(Buffer.from(joined(readEntries(...old, path)), 'latin1').equals(Buffer.from(numbers(count))))
    await io.closeLog('r')
  })

  test('reopen after the end makes the file that a reader looks for; it is in the old file that the output is', async () => {
    using scratch = new Scratch()
    const [fifo, path] = [scratch.fifo('out'), scratch.file('0.log')]
    await io.openLog({ id: 're', stdoutFifo: fifo, stderrFifo: undefined, logPath: path, maxLineBytes: 16384 })
    await shell('echo last >"$1"', fifo).ended
    assert.equal(await io.drained('re', 60_000), 'eof')
    renameSync(path, scratch.file('old'))
    await io.reopenLog('re')
    assert.equal(readFileSync(path, 'utf8'), '')
    assert.equal(joined(readEntries(scratch.file('old'))), 'last\n')
    await io.closeLog('re')
  })

  test('errors: twice open, not open, no FIFO, no directory; nothing stays open', async () => {
    using scratch = new Scratch()
    const fifo = scratch.fifo('out')
    const open = (stdoutFifo: string, logPath: string): Promise<void> => io.openLog({ id: 'e', stdoutFifo, stderrFifo: scratch.file('none'), logPath, maxLineBytes: -1 })
    const descriptors = openDescriptors()
    await assert.rejects(open(fifo, scratch.file('0.log')), { code: Code.FAILED_PRECONDITION, message: /cannot open the FIFO .*none.*does not exist/ })
    await assert.rejects(open(scratch.path, scratch.file('0.log')), { message: /not a FIFO/ })
    await assert.rejects(open(fifo, scratch.file('no/0.log')), { message: /cannot open the log file .* of container e: its directory does not exist/ })
    await assert.rejects(io.reopenLog('e'), { code: Code.NOT_FOUND })
    await io.closeLog('e')
    const options = { id: 'e', stdoutFifo: fifo, stderrFifo: undefined, logPath: undefined, maxLineBytes: -1 }
    await io.openLog(options)
    await assert.rejects(io.openLog(options), { code: Code.ALREADY_EXISTS })
    await io.closeLog('e')
    assert.equal(openDescriptors(), descriptors)
  })

  test('200 containers opened and closed leave no descriptor', async () => {
    using scratch = new Scratch()
    const [stdoutFifo, stderrFifo, logPath] = [scratch.fifo('out'), scratch.fifo('err'), scratch.file('0.log')]
    const descriptors = openDescriptors()
    for (let i = 0; i < 200; i++) {
      const id = `many${i}`
      await io.openLog({ id, stdoutFifo, stderrFifo, logPath, maxLineBytes: 16384 })
      if (i % 4 === 0) await io.reopenLog(id)
      if (i % 2 === 0) assert.equal(await io.drained(id, 60_000), 'eof')
      await io.closeLog(id)
    }
    assert.equal(openDescriptors(), descriptors)
  })
})

test('a full disk does not stop the container', async () => {
  using scratch = new Scratch()
  const { log, lines } = recordingLogger()
  const [fifo, pod] = [scratch.fifo('out'), scratch.file('pod')]
  mkdirSync(pod)
  await using io = await IoWorker.start({ log })
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'cri-shim-test', pod])
  try {
    await io.openLog({ id: 'c', stdoutFifo: fifo, stderrFifo: undefined, logPath: join(pod, '0.log'), maxLineBytes: 16384 })
    using writer = shell('seq 1 100000 >"$1"', fifo)
    await writer.ended
    assert.equal(await io.drained('c', 60_000), 'eof')
    const { bytesRead, bytesWritten, droppedBytes, diskErrors, entries } = io.stats()
    assert.equal(bytesRead, numbers(100_000).length)
    assert.equal(entries, 100_000)
    assert.equal(bytesWritten, statSync(join(pod, '0.log')).size)
    assert.equal(bytesWritten + droppedBytes, bytesRead + 40 * entries)
    assert.ok(diskErrors > 0)
    assert.match(lines.map(({ msg }) => msg).join('\n'), /^cannot write the log of container c: ENOSPC.*$/)
    await io.closeLog('c')
  } finally {
    await io.close()
    execFileSync('umount', [pod])
  }
})

describe('another service goes on', () => {
  test('after an orderly close in the middle of a line: nothing is lost, readers join the halves', async () => {
    using scratch = new Scratch()
    const count = 3_000_000
    const expected = Buffer.from(numbers(count))
    const [fifo, path] = [scratch.fifo('out'), scratch.file('0.log')]
    const { log, lines } = recordingLogger()
    const descriptors = openDescriptors()
    const options = { id: 'c', stdoutFifo: fifo, stderrFifo: undefined, logPath: path, maxLineBytes: 16384 }
    using shim = shell(shimWriter, fifo, String(count))
    let total = 0
    for (let round = 0; round < 4; round++) {
      await using io = await IoWorker.start({ log })
      await io.openLog({ ...options, recover: round > 0 })
      io.started('c')
      await until(() => io.stats().bytesRead > 100_000, 'output')
      await io.close()
      total += io.stats().bytesRead
    }
    assert.ok(total < expected.length, 'the writer was too quick for this test')
    await using io = await IoWorker.start({ log })
    await io.openLog({ ...options, recover: true })
    shim.child.stdin?.end('\n')
    await shim.ended
    assert.equal(await io.drained('c', 60_000), 'eof')
    await io.close()
    assert.ok(Buffer.from(joined(readEntries(path)), 'latin1').equals(expected))
    assert.equal(openDescriptors(), descriptors)
    assert.deepEqual(lines, [])
  })

  test('after kill -9 under load: at most the piece in hand and an unfinished line are lost', async () => {
    using scratch = new Scratch()
    const count = 2_000_000
    const [fifo, path] = [scratch.fifo('out'), scratch.file('0.log')]
    using shim = shell(shimWriter, fifo, String(count))
    using service = spawn(process.execPath, [new URL('killed-service.fixture.ts', import.meta.url).pathname, fifo, path], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(service.stdout, 'data')
    await until(() => statSync(path).size > 1_000_000, 'output')
    service.kill('SIGKILL')
    await once(service, 'exit')
    const { size } = statSync(path)
    await using io = await IoWorker.start(recordingLogger())
    await io.openLog({ id: 'c', stdoutFifo: fifo, stderrFifo: undefined, logPath: path, maxLineBytes: 16384, recover: true })
    shim.child.stdin?.end('\n')
    await shim.ended
    assert.equal(await io.drained('c', 60_000), 'eof')
    await io.close()
    const text = readFileSync(path, 'latin1')
    // A write that the kill cut short leaves half an entry, closed by a newline when the log is opened again.
    const seam = text[size - 1] === '\n' ? size : text.lastIndexOf('\n', size - 1) + 1
    const first = joined(parseEntries(text.slice(0, seam)))
    const second = joined(parseEntries(text.slice(seam === size ? size : size + 1)))
    const all = numbers(count)
    assert.ok(all.startsWith(first) && first.length > 0)
    assert.ok(all.endsWith(second) && second.length > 0)
    const lost = all.length - first.length - second.length
    assert.ok(lost >= 0 && lost <= 64 * 1024 + 16, `${lost} bytes lost`)
  })

  test('after a crash of the worker: logs and their waits go on, calls and captures fail, no descriptor is left', async () => {
    using scratch = new Scratch()
    const count = 2_000_000
    const [fifo, path, quiet, ended] = [scratch.fifo('out'), scratch.file('0.log'), scratch.fifo('quiet'), scratch.fifo('ended')]
    const { log, lines } = recordingLogger()
    const crashes: string[] = []
    const descriptors = openDescriptors()
    const entry = new URL('crashing-worker.fixture.ts', import.meta.url)
    await using io = await IoWorker.start({ log, entry, onCrash: (error) => void crashes.push(error.message) })
    await io.openLog({ id: 'c', stdoutFifo: fifo, stderrFifo: undefined, logPath: path, maxLineBytes: 16384 })
    await io.openLog({ id: 'quiet', stdoutFifo: quiet, stderrFifo: undefined, logPath: scratch.file('quiet.log'), maxLineBytes: 16384 })
    await io.openLog({ id: 'ended', stdoutFifo: ended, stderrFifo: undefined, logPath: scratch.file('ended.log'), maxLineBytes: 16384 })
    assert.equal(await io.drained('ended', 60_000), 'eof')
    const capture = await io.capture({ id: 'x', stdoutFifo: scratch.fifo('x'), stderrFifo: undefined, limitBytes: 1000 })
    const opened = openDescriptors()
    using shim = shell(shimWriter, fifo, String(count))
    await until(() => io.stats().bytesRead > 1_000_000, 'output')
    io.started('c')
    const drained = io.drained('c', 60_000)
    const crash = { id: 'crash', stdoutFifo: scratch.fifo('y'), stderrFifo: undefined, limitBytes: 1000 }
    await assert.rejects(io.capture(crash), { code: Code.INTERNAL, message: /deliberate fault/ })
    await assert.rejects(capture.result({ drainTimeoutMs: 0 }), { code: Code.INTERNAL, message: /lost/ })
    await capture.close()
    // The log calls that follow are answered by the new worker.
    await io.reopenLog('ended')
    await shell('echo still here >"$1"', quiet).ended
    assert.equal(await io.drained('quiet', 60_000), 'eof')
    assert.equal(joined(readEntries(scratch.file('quiet.log'))), 'still here\n')
    shim.child.stdin?.end('\n')
    await shim.ended
    assert.equal(await drained, 'eof')
    assert.deepEqual(gaps(readEntries(path), count), [], 'only the beginning of one line may be missing')
    assert.equal(crashes.length, 1)
    assert.equal(io.stats().crashes, 1)
    assert.equal(io.stats().captures, 0)
    assert.ok(openDescriptors() < opened)
    await io.close()
    assert.equal(openDescriptors(), descriptors)
    assert.deepEqual(lines.map(({ msg }) => msg), ['the log worker failed: starting a new one and opening all logs again'])
  })

  test('a worker that hangs: the call says so in time, the descriptors are closed in the end', async () => {
    using scratch = new Scratch()
    const descriptors = openDescriptors()
    const { log } = recordingLogger()
    await using io = await IoWorker.start({ log, entry: new URL('crashing-worker.fixture.ts', import.meta.url), callTimeoutMs: 2000, closeTimeoutMs: 10 })
    await io.openLog({ id: 'c', stdoutFifo: scratch.fifo('out'), stderrFifo: undefined, logPath: scratch.file('0.log'), maxLineBytes: 16384 })
    const hang = { id: 'hang', stdoutFifo: scratch.fifo('y'), stderrFifo: undefined, limitBytes: 1000 }
    await assert.rejects(io.capture(hang), { code: Code.DEADLINE_EXCEEDED, message: /took longer than 2 s.*disk/ })
    await io.close()
    await assert.rejects(io.reopenLog('c'), { code: Code.UNAVAILABLE, message: /shutting down/ })
    assert.equal(openDescriptors(), descriptors)
  })

  test('a worker that cannot start: INTERNAL, and no end of restarts is left behind', async () => {
    const { log } = recordingLogger()
    await assert.rejects(IoWorker.start({ log, entry: new URL('no-such-worker.ts', import.meta.url) }), { code: Code.INTERNAL, message: /the log worker failed/ })
  })
})

/** What is wrong with the numbers of a log beside one line whose beginning is missing. */
function gaps(entries: readonly Entry[], count: number): string[] {
  const lines = joined(entries).split('\n').slice(0, -1)
  const wrong: string[] = []
  if (lines.length !== count && lines.length !== count - 1) wrong.push(`${lines.length} lines`)
  let damaged = 0
  let next = 1
  for (const line of lines) {
    if (line !== String(next)) {
      // The newline alone may have come after the crash, or the line's end, or all of it is there but for its newline.
      if (damaged++ > 0 || !String(next).endsWith(line)) wrong.push(`${line} instead of ${next}`)
    }
    next++
  }
  return wrong.slice(0, 5)
}
