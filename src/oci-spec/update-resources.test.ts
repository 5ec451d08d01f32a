import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Code } from '../errors/cri-error.ts'
import type { LinuxContainerResources } from '../generated/cri.ts'
import type { Init } from '../generated/int64.ts'
import { containerSpec } from './container-spec.ts'
import { containerConfig, containerInput, hostFacts, refusal, settings } from './spec-fixtures.ts'
import type { OciSpec } from './types.ts'
import { resourcesOfSpec, revertingResources, updatedSpec, type ResourceUpdate } from './update-resources.ts'

const request = (resources: Init<LinuxContainerResources>): LinuxContainerResources => {
  const decoded = containerConfig({ linux: { resources } }).linux?.resources
  assert.ok(decoded)
  return decoded
}
const created = (resources: Init<LinuxContainerResources>, facts: object = {}): OciSpec => containerSpec(containerInput({ config: { linux: { resources } }, facts }))
const updated = (spec: OciSpec, resources: Init<LinuxContainerResources> | null, rest: Partial<ResourceUpdate> = {}, facts: object = {}): OciSpec =>
  updatedSpec(spec, { linux: resources === null ? null : request(resources), annotations: {}, started: true, ...rest }, {
    hostFacts: { ...hostFacts, ...facts }, settings, runtime: { containerAnnotations: ['allowed.io/*'] },
  })
const limits = ({ linux }: OciSpec) => ({ cpu: linux?.resources?.cpu, memory: linux?.resources?.memory })

test('an update replaces what it gives and leaves the rest', () => {
  const before = created({ cpu_shares: '512', cpu_quota: '50000', cpu_period: '100000', cpuset_cpus: '0-1', memory_limit_in_bytes: '1000000', memory_swap_limit_in_bytes: '3000000' })
  const frozen = structuredClone(before)
  assert.deepEqual(limits(updated(before, { cpu_quota: '70000' })), { cpu: { shares: 512, quota: 70000, period: 100000, cpus: '0-1' }, memory: { limit: 1000000, swap: 3000000 } })
  assert.deepEqual(limits(updated(before, { cpu_shares: '2', cpu_quota: '-1', cpuset_cpus: '3', cpuset_mems: '0' })).cpu, { shares: 2, quota: -1, period: 100000, cpus: '3', mems: '0' })
  assert.deepEqual(before, frozen)
  // A memory limit alone forbids swap, as it does at creation.
  assert.deepEqual(limits(updated(before, { memory_limit_in_bytes: '2000000' })).memory, { limit: 2000000, swap: 2000000 })
  assert.deepEqual(limits(updated(before, { memory_limit_in_bytes: '2000000', memory_swap_limit_in_bytes: '-1' })).memory, { limit: 2000000, swap: -1 })
  assert.deepEqual(limits(updated(before, { memory_limit_in_bytes: '-1' })).memory, { limit: -1, swap: -1 })
  assert.deepEqual(limits(updated(created({}), { memory_limit_in_bytes: '5' }, {}, { swapControllerAvailable: false })).memory, { limit: 5 })
  // A swap limit alone is measured against the memory limit that there is.
  assert.deepEqual(limits(updated(before, { memory_swap_limit_in_bytes: '1000000' })).memory, { limit: 1000000, swap: 1000000 })
  assert.throws(() => updated(before, { memory_swap_limit_in_bytes: '999999' }), refusal(Code.INVALID_ARGUMENT, /below the memory limit of 1000000/))
  assert.throws(() => updated(created({}), { memory_swap_limit_in_bytes: '999999' }), refusal(Code.INVALID_ARGUMENT, /without a memory limit/))
  // Everything that is no resource, and the devices among them, stays.
  const after = updated(before, { cpu_shares: '1024' })
  assert.deepEqual({ ...after, linux: { ...after.linux, resources: {} } }, { ...before, linux: { ...before.linux, resources: {} } })
  assert.deepEqual(after.linux?.resources?.devices, before.linux?.resources?.devices)
})

test('huge page limits are replaced by size, unified ones by key', () => {
  const before = created({ hugepage_limits: [{ page_size: '2MB', limit: '4' }, { page_size: '1GB', limit: '0' }], unified: { 'memory.high': '1', 'memory.low': '2' } })
  const once = updated(before, { hugepage_limits: [{ page_size: '2MB', limit: '8' }], unified: { 'memory.high': 'max' } })
  assert.deepEqual(once.linux?.resources?.hugepageLimits, [{ pageSize: '1GB', limit: 0 }, { pageSize: '2MB', limit: 8 }])
  assert.deepEqual(updated(once, { hugepage_limits: [{ page_size: '2MB', limit: '8' }] }).linux?.resources?.hugepageLimits, once.linux?.resources?.hugepageLimits)
  assert.deepEqual(once.linux?.resources?.unified, { 'memory.high': 'max', 'memory.low': '2' })
  assert.throws(() => updated(before, { unified: { 'memory.high': '1' } }, {}, { cgroupMode: 'legacy' }), refusal(Code.FAILED_PRECONDITION, /need cgroup v2/))
})

test('oom_score_adj is for the start; annotations pass the allow-list; no Linux part changes nothing', () => {
  const before = created({ oom_score_adj: '100' })
  assert.equal(updated(before, { oom_score_adj: '500' }).process?.oomScoreAdj, 100)
  assert.equal(updated(before, { oom_score_adj: '500' }, { started: false }).process?.oomScoreAdj, 500)
  assert.equal(updated(before, { cpu_shares: '5' }, { started: false }).process?.oomScoreAdj, 100)
  assert.equal(updated(before, { oom_score_adj: '-900' }, { started: false }, { effectiveCapabilities: 0n, ownOomScoreAdj: -5 }).process?.oomScoreAdj, -5)
  assert.throws(() => updated(before, { oom_score_adj: '1001' }), refusal(Code.INVALID_ARGUMENT, /oom_score_adj is 1001/))
  const annotations = { 'allowed.io/a': '1', 'other.io/b': '2' }
  assert.deepEqual(updated(before, null, { annotations }), { ...before, annotations: { ...before.annotations, 'allowed.io/a': '1' } })
  assert.equal(updated(before, null), before)
})

test('taking an update back lifts what was not limited before', () => {
  const before = created({ cpu_shares: '512', memory_limit_in_bytes: '-1' })
  const after = updated(before, { cpu_shares: '600', cpu_quota: '50000', cpu_period: '200000', memory_limit_in_bytes: '1000' })
  const { cpu, memory } = revertingResources(before.linux?.resources ?? {}, after.linux?.resources ?? {})
  assert.deepEqual([cpu, memory], [{ quota: -1, period: 100000, shares: 512 }, { limit: -1, swap: -1 }])
  const bare = revertingResources({}, after.linux?.resources ?? {})
  assert.deepEqual([bare.cpu, bare.memory], [{ quota: -1, period: 100000, shares: 1024 }, { limit: -1, swap: -1 }])
  assert.deepEqual(revertingResources({}, {}), { cpu: {}, memory: {} })
})

test('status gives every resource of a spec', () => {
  const all = {
    cpu_period: '100000', cpu_quota: '-1', cpu_shares: '512', cpuset_cpus: '0', cpuset_mems: '0', memory_limit_in_bytes: '9223372036854771712', memory_swap_limit_in_bytes: '-1',
    oom_score_adj: '-998', hugepage_limits: [{ page_size: '2MB', limit: '0' }], unified: { 'memory.high': '1' },
  }
  assert.deepEqual(resourcesOfSpec(created(all)), all)
  assert.deepEqual(resourcesOfSpec({ ociVersion: '1.0.2' }), request({}))
})
