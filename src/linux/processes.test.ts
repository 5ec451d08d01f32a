import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Linux } from './linux.ts'
import { parseProcessStat } from './ops/processes.ts'
import { failing, fixture, type Fixture } from './testing/fixture.ts'

/** A process that has printed its first line. */
async function started({ defer }: Fixture, script: string): Promise<{ child: ChildProcess; pid: number; line: string }> {
  const child = spawn('setsid', ['--wait', 'sh', '-c', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  defer(() => child.kill('SIGKILL'))
  const [data] = (await once(child.stdout, 'data')) as [Buffer]
  const line = data.toString().trim()
  return { child, pid: Number(line.split(' ')[0]), line }
}

/** A cgroup of this test, in whatever hierarchy this machine has, with the process in it. */
async function ownCgroup({ linux, defer }: Fixture, pid: number): Promise<string> {
  const { cgroup } = await linux.probeHost()
  const mount = cgroup.v1['pids'] ?? cgroup.v2 ?? ''
  const dir = join(mount, `cri-shim-test-${process.pid}-${pid}`)
  mkdirSync(dir)
  defer(() => linux.removeCgroup({ v1: {}, v2: dir }))
  writeFileSync(join(dir, 'cgroup.procs'), String(pid))
  return dir
}

async function alive(linux: Linux, pid: number): Promise<boolean> {
  const stat = await linux.processStat(pid)
  return stat !== undefined && stat.state !== 'Z' && stat.state !== 'X'
}

test('the state of a process, whatever its name', () => {
  const fields = `S 1 20 30 0 -1 4194560 ${Array.from({ length: 12 }, () => '0').join(' ')} 98765 0 0`
  assert.deepEqual(parseProcessStat(`42 (a) R (b) ${fields}`), {
    pid: 42, comm: 'a) R (b', state: 'S', parentPid: 1, processGroup: 20, session: 30, startTimeTicks: 98765n,
  })
  const own = parseProcessStat(readFileSync('/proc/self/stat', 'latin1'))
  assert.equal(own.pid, process.pid)
  assert.equal(own.parentPid, process.ppid)
})

test('a signal reaches the process that is meant, and no other', async (t) => {
  const f = await fixture(t)
  const child = spawn('sleep', ['1000'])
  f.defer(() => child.kill('SIGKILL'))
  const pid = child.pid ?? 0
  const stat = await f.linux.processStat(pid)
  assert.equal(stat?.parentPid, process.pid)
  await assert.rejects(f.linux.sendSignal(pid, 'SIGKILL', { startTimeTicks: (stat?.startTimeTicks ?? 0n) - 1n }), failing('ESRCH', String(pid)))
  await f.linux.sendSignal(pid, 0)
  const exit = once(child, 'exit')
  await f.linux.sendSignal(pid, 'SIGTERM', { startTimeTicks: stat?.startTimeTicks })
  assert.deepEqual(await exit, [null, 'SIGTERM'])
  await assert.rejects(f.linux.sendSignal(pid, 'SIGTERM'), failing('ESRCH', String(pid)))
  for (const wrong of [0, -1, 1, 1.5]) await assert.rejects(f.linux.sendSignal(wrong, 'SIGTERM'), failing('INVALID_ARGUMENT', String(wrong)))
  await assert.rejects(f.linux.sendSignal(pid, 99), failing('INVALID_ARGUMENT', '99'))
})

test('a session is killed whole, with what ignores signals and the leader dead, and nothing else in the cgroup', async (t) => {
  const f = await fixture(t)
  const init = await started(f, 'echo $$; exec cat')
  await ownCgroup(f, init.pid)
  const dir = (await f.linux.probeHost()).cgroup
  const procs = join(dir.v1['pids'] ?? dir.v2 ?? '', `cri-shim-test-${process.pid}-${init.pid}`, 'cgroup.procs')
  // The exec'd process joins the container's cgroup, starts a group and a child that ignore SIGTERM and SIGHUP, and ends.
  const exec = await started(f, `echo $$ > ${procs}; trap '' TERM HUP; sleep 1000 & a=$!; (sleep 1001 & exec sleep 1002) & echo $$ $a $!; exit 0`)
  const [, first, second] = exec.line.split(' ').map(Number)
  await once(exec.child, 'exit')
  // Somebody else's process of the same cgroup and another session.
  const other = await started(f, `echo $$ > ${procs}; echo $$; exec cat`)

  const result = await f.linux.killSession({ pid: exec.pid, containerPid: init.pid })
  assert.deepEqual(result, { killed: 3, remaining: [] })
  assert.equal(await alive(f.linux, first ?? 0), false)
  assert.equal(await alive(f.linux, second ?? 0), false)
  assert.equal(await alive(f.linux, init.pid), true)
  assert.equal(await alive(f.linux, other.pid), true)
  assert.deepEqual(await f.linux.killSession({ pid: exec.pid, containerPid: init.pid }), { killed: 0, remaining: [] })
  assert.deepEqual(await f.linux.killSession({ pid: other.pid, cgroupProcsFiles: [procs] }), { killed: 1, remaining: [] })
  assert.equal(await alive(f.linux, other.pid), false)
  assert.deepEqual(await f.linux.killSession({ pid: init.pid, containerPid: init.pid }), { killed: 1, remaining: [] })
})

test('a session outside the container\'s cgroup is not touched', async (t) => {
  const f = await fixture(t)
  const init = await started(f, 'echo $$; exec cat')
  const stranger = await started(f, 'echo $$; exec cat')
  await assert.rejects(f.linux.killSession({ pid: stranger.pid, containerPid: init.pid }), failing('FAILED_PRECONDITION', String(init.pid)))
  const dir = await ownCgroup(f, init.pid)
  assert.deepEqual(await f.linux.killSession({ pid: stranger.pid, containerPid: init.pid }), { killed: 0, remaining: [] })
  assert.deepEqual(await f.linux.killSession({ pid: stranger.pid, cgroupProcsFiles: [join(dir, 'cgroup.procs')] }), { killed: 0, remaining: [] })
  assert.equal(await alive(f.linux, stranger.pid), true)
  await assert.rejects(f.linux.killSession({ pid: stranger.pid }), failing('INVALID_ARGUMENT', 'containerPid'))
  await assert.rejects(f.linux.removeCgroup({ v1: {}, v2: dir }), failing('EBUSY', dir, String(init.pid)))
  const exit = once(init.child, 'exit')
  await f.linux.sendSignal(init.pid, 'SIGKILL')
  await exit
  await assert.rejects(f.linux.killSession({ pid: stranger.pid, containerPid: init.pid }), failing('ESRCH', String(init.pid)))
})

test('a lock keeps a second service out and says who holds it; the end of the holder frees it', async (t) => {
  const f = await fixture(t)
  const path = join(f.dir, 'lock')
  const lock = await f.linux.lockFile(path)
  await assert.rejects(f.linux.lockFile(path), failing('LOCKED', path, `process ${process.pid} (`))
  await lock.release()
  await lock.release()
  const program = `
    import { Linux } from ${JSON.stringify(new URL('linux.ts', import.meta.url).href)}
    const linux = await Linux.start({ log: { warn() {}, info() {} } })
    await linux.lockFile(${JSON.stringify(path)})
    console.log('locked')
    process.stdin.resume()`
  const holder = spawn(process.execPath, ['--input-type=module', '--eval', program], { stdio: ['pipe', 'pipe', 'inherit'] })
  f.defer(() => holder.kill('SIGKILL'))
  await once(holder.stdout, 'data')
  await assert.rejects(f.linux.lockFile(path), failing('LOCKED', `process ${holder.pid} (`))
  const exit = once(holder, 'exit')
  holder.kill('SIGKILL')
  await exit
  await (await f.linux.lockFile(path)).release()
})

test('the other end of a unix socket is known', async (t) => {
  const f = await fixture(t)
  const path = join(f.dir, 'socket')
  const server = createServer()
  f.defer(() => server.close())
  await new Promise<void>((resolve) => server.listen(path, resolve))
  const accepted = once(server, 'connection') as Promise<[Socket & { _handle: { fd: number } }]>
  const client = connect(path)
  f.defer(() => client.destroy())
  const [socket] = await accepted
  f.defer(() => socket.destroy())
  assert.deepEqual(await f.linux.peerCredentials(socket._handle.fd), { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() })
  await assert.rejects(f.linux.peerCredentials(1_000_000), failing('EBADF', '1000000'))
})
