import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { LogCapture } from '../server/fixtures.ts'
import { ServiceNotifier, takeNotifyEnvironment } from './sd-notify.ts'

test('the environment is read and removed', () => {
  const env: NodeJS.ProcessEnv = { NOTIFY_SOCKET: '@x', WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7', PATH: '/bin' }
  assert.deepEqual(takeNotifyEnvironment(env, 7), { socket: '@x', watchdogMs: 3000 })
  assert.deepEqual(env, { PATH: '/bin' })
  assert.deepEqual(takeNotifyEnvironment({ NOTIFY_SOCKET: '/x', WATCHDOG_USEC: '3000000', WATCHDOG_PID: '7' }, 8), { socket: '/x', watchdogMs: undefined })
  assert.deepEqual(takeNotifyEnvironment({ NOTIFY_SOCKET: '', WATCHDOG_USEC: 'x' }, 8), { socket: undefined, watchdogMs: undefined })
})

test('every message has the form that systemd reads', async () => {
  const sent: string[] = []
  const notifier = new ServiceNotifier({ socket: '/n', watchdogMs: undefined }, new LogCapture().log, (_socket, message) => void sent.push(message))
  await notifier.status('a\nREADY=0')
  await notifier.ready('up')
  const before = process.hrtime.bigint() / 1000n
  await notifier.reloading()
  await notifier.stopping('down')
  assert.deepEqual([sent[0], sent[1], sent[3]], ['STATUS=a READY=0', 'READY=1\nSTATUS=up', 'STOPPING=1\nSTATUS=down'])
  const [, usec] = /^RELOADING=1\nMONOTONIC_USEC=(\d+)$/.exec(sent[2] ?? '') ?? []
  assert.ok(BigInt(usec ?? 0) >= before)
})

test('a full queue is waited for, another failure is logged, and neither is thrown', async () => {
  const capture = new LogCapture()
  const failures = [new CriError(Code.UNAVAILABLE, 'full', { reason: 'EAGAIN' }), undefined, new CriError(Code.NOT_FOUND, 'nobody', { reason: 'ENOENT' })]
  let calls = 0
  const notifier = new ServiceNotifier({ socket: '/n', watchdogMs: undefined }, capture.log, () => {
    const failure = failures[calls++]
    if (failure !== undefined) throw failure
  })
  await notifier.ready('up')
  assert.equal(calls, 2)
  assert.equal(capture.lines.length, 0)
  await notifier.status('x')
  assert.equal(calls, 3)
  assert.equal(capture.lines[0]?.level, 'warn')
})

test('without a service manager nothing is sent', async () => {
  const notifier = new ServiceNotifier({ socket: undefined, watchdogMs: 10 }, new LogCapture().log, () => assert.fail('sent'))
  await notifier.ready('up')
  await notifier.stopping('down')
  notifier.close()
})
