import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { it } from 'node:test'
import { ProcessMeter } from './process-meter.ts'

it('reads CPU time of a process and of the children that it waited for', async () => {
  const burn = 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'
  const child = spawn('/bin/sh', ['-c', `sh -c '${burn}'; ${burn}; echo done; read end`], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  await once(child.stdout, 'data')
  const { own, children } = await new ProcessMeter(child.pid ?? 0).cpu()
  child.stdin.end('\n')
  await ended
  assert.ok(own > 0, `own ${own}`)
  assert.ok(children > 0, `children ${children}`)
})

it('reads peak memory, for the whole life and since a moment', async () => {
  const large = 96 * 1024 * 1024
  const script = `
    let held = Buffer.alloc(${large}, 1)
    process.stdin.once('data', () => { console.log('gone') })
    console.log(held.length); held = undefined; globalThis.gc()`
  const child = spawn(process.execPath, ['--expose-gc', '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = once(child, 'exit')
  await once(child.stdout, 'data')
  child.stdin.write('\n')
  await once(child.stdout, 'data') // by now the buffer is freed
  const meter = new ProcessMeter(child.pid ?? 0)
  const before = await meter.peakBytes()
  await meter.resetRecentPeak()
  const recent = await meter.recentPeakBytes()
  const after = await meter.peakBytes()
  child.stdin.end()
  child.kill('SIGKILL')
  await ended
  assert.ok(before > large, `peak ${before}`)
  assert.ok(recent < before - large / 2, `recent peak ${recent} of ${before}`)
  assert.equal(after, before)
})
