import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { labelledMounts } from '../../containerd/mount-label.ts'
import { Code } from '../../errors/cri-error.ts'
import { parsePolicyContexts } from '../../oci-spec/selinux.ts'
import { refusal } from '../../oci-spec/spec-fixtures.ts'
import type { Container, Sandbox } from '../../state/records.ts'
import { Store } from '../../state/store.ts'
import { readSelinuxPolicy, reportSelinux, Selinux, type SelinuxOptions } from './selinux.ts'

const CONTEXTS = 'process = "system_u:system_r:container_t:s0"\nfile = "system_u:object_r:container_file_t:s0"\n'

function node(changes: Partial<SelinuxOptions> = {}) {
  const relabelled: string[] = []
  const selinux = new Selinux({
    enabled: true, categoryRange: 2, policy: parsePolicyContexts(CONTEXTS), virtualMachines: (handler) => handler === 'kata',
    relabelTree: (path, label) => Promise.resolve(void relabelled.push(`${path} ${label}`)), ...changes,
  })
  const [sandboxes, containers] = [new Store<Sandbox>('pod sandbox'), new Store<Container>('container')]
  selinux.follow([sandboxes, containers])
  const labels = (id: string, podLabel = '', handler = '') => selinux.labels({ id, options: null, podLabel, handler })
  const record = (id: string, processLabel: string) => ({ id, metadata: { processLabel } })
  const put = (id: string, label: string): void => void sandboxes.put(record(id, label) as unknown as Sandbox)
  const putContainer = (id: string, label: string): void => void containers.put(record(id, label) as unknown as Container)
  return { selinux, sandboxes, containers, labels, put, putContainer, relabelled }
}

test('a level goes with the last of a pod and its containers, and a failed start gives it back', () => {
  const { labels, put, putContainer, sandboxes, containers, selinux } = node()
  const pod = labels('pod')
  assert.ok(pod)
  put('pod', pod.recorded)
  assert.equal(labels('container', pod.recorded)?.processLabel, pod.processLabel)
  putContainer('container', pod.recorded)
  assert.throws(() => labels('other'), refusal(Code.RESOURCE_EXHAUSTED, /selinux_category_range/))
  sandboxes.delete('pod')
  assert.throws(() => labels('other'), refusal(Code.RESOURCE_EXHAUSTED, /in use/))
  containers.delete('container')
  assert.equal(labels('other')?.recorded, pod.recorded)
  selinux.release('other')
  assert.equal(labels('another')?.recorded, pod.recorded)
})

test('after a restart the levels of what runs are taken', () => {
  const { labels, put, sandboxes } = node()
  put('pod', 'system_u:system_r:container_t:s0:c0,c1')
  assert.throws(() => labels('other'), refusal(Code.RESOURCE_EXHAUSTED, /in use/))
  sandboxes.update('pod', (record) => ({ ...record, state: 'notready' }))
  assert.throws(() => labels('other'), refusal(Code.RESOURCE_EXHAUSTED, /in use/))
  sandboxes.delete('pod')
  assert.ok(labels('other'))
})

test('off means no labels and nothing relabelled; a node without a policy runs no pod', async () => {
  const off = node({ enabled: false })
  assert.equal(off.labels('pod'), undefined)
  await off.selinux.relabel('/data', 'a:b:c')
  assert.deepEqual(off.relabelled, [])
  assert.throws(() => node({ policy: undefined }).labels('pod'), refusal(Code.FAILED_PRECONDITION, /container-selinux/))
  const on = node()
  await on.selinux.relabel('/data', 'a:b:c')
  await on.selinux.relabel('/data', '')
  assert.deepEqual(on.relabelled, ['/data a:b:c'])
})

test('the policy is found where distributions have it', async (t: TestContext) => {
  const root = await mkdtemp(join(tmpdir(), 'cri-shim-selinux-'))
  t.after(() => rm(root, { recursive: true, force: true }))
  const write = async (path: string, text: string): Promise<void> => {
    await mkdir(join(root, path, '..'), { recursive: true })
    await writeFile(join(root, path), text)
  }
  assert.equal(await readSelinuxPolicy(root), undefined)
  await write('etc/selinux/config', '# SELINUXTYPE=none\nSELINUX=enforcing\nSELINUXTYPE=targeted\n')
  assert.equal(await readSelinuxPolicy(root), undefined)
  await write('etc/selinux/targeted/contexts/lxc_contexts', CONTEXTS.replaceAll('container', 'old'))
  assert.equal((await readSelinuxPolicy(root))?.process.type, 'old_t')
  await write('usr/share/containers/selinux/contexts', CONTEXTS)
  assert.equal((await readSelinuxPolicy(root))?.process.type, 'container_t')
})

test('an administrator hears why containers have no labels', () => {
  const said: string[] = []
  const log = { warn: (_: unknown, message?: string) => void said.push(message ?? '') }
  reportSelinux(log, false, true, undefined)
  reportSelinux(log, true, true, parsePolicyContexts(CONTEXTS))
  assert.deepEqual(said, [])
  reportSelinux(log, true, false, undefined)
  reportSelinux(log, true, true, undefined)
  assert.match(said.join('\n'), /kernel runs without SELinux[^]*install the package container-selinux/)
})

test('a root file system is mounted with its label, quoted for the commas in it', () => {
  const mount = { type: 'overlay', source: 'overlay', target: '', options: ['lowerdir=/a'] }
  assert.deepEqual(labelledMounts([mount], ''), [mount])
  assert.deepEqual(labelledMounts([mount], 'u:r:t:s0:c1,c2')[0]?.options, ['lowerdir=/a', 'context="u:r:t:s0:c1,c2"'])
})
