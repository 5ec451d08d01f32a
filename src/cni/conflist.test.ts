import assert from 'node:assert/strict'
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { loadConfDir, parseConf, parseConflist } from './conflist.ts'
import { Sandbox } from './test-support.ts'
import { compareCniVersions } from './version.ts'

const list = (name: string, more: Record<string, unknown> = {}): Record<string, unknown> => ({ cniVersion: '1.0.0', name, plugins: [{ type: 'bridge' }], ...more })

test('versions compare by number', () => {
  assert.equal(compareCniVersions('0.10.0', '0.4.0'), 1)
  assert.equal(compareCniVersions('', '0.1.0'), 0)
  assert.equal(compareCniVersions('1.0', '1.0.0'), 0)
  assert.equal(compareCniVersions('0.3.1', '0.4.0'), -1)
  assert.equal(compareCniVersions('one', '0.4.0'), undefined)
})

test('the newest version of several that is spoken here is taken', () => {
  const version = (more: Record<string, unknown>): string => parseConflist(JSON.stringify({ ...list('n'), cniVersion: undefined, ...more })).cniVersion
  assert.equal(version({ cniVersions: ['0.4.0', '1.0.0', '9.0.0'] }), '1.0.0')
  assert.equal(version({ cniVersion: '1.1.0', cniVersions: ['0.4.0'] }), '1.1.0')
  assert.equal(version({ cniVersion: '0.4.0' }), '0.4.0')
  assert.equal(version({}), '')
})

test('a single plugin becomes a list that is complete by itself', () => {
  const conf = parseConf(JSON.stringify({ cniVersion: '0.4.0', name: 'one', type: 'ptp', capabilities: { dns: true } }))
  assert.deepEqual([conf.name, conf.cniVersion, conf.plugins[0]?.type, [...(conf.plugins[0]?.capabilities ?? [])]], ['one', '0.4.0', 'ptp', ['dns']])
  assert.deepEqual(parseConflist(conf.source), conf)
})

test('what is wrong with a file is said', () => {
  const cases: readonly [(text: string) => unknown, string, RegExp][] = [
    [parseConflist, '', /^is empty$/],
    [parseConflist, '{"name": "x",}', /^is not valid JSON: .*line 1 column 14/],
    [parseConflist, '[]', /^is not a JSON object$/],
    [parseConflist, '{"plugins":[{"type":"a"}]}', /^has no "name"$/],
    [parseConflist, '{"name":"../x","plugins":[{"type":"a"}]}', /^has the name "\.\.\/x": only letters/],
    [parseConflist, '{"name":"x"}', /^has no "plugins"/],
    [parseConflist, '{"name":"x","plugins":[]}', /^has no "plugins"/],
    [parseConflist, '{"name":"x","plugins":{}}', /^has "plugins" that is not a list$/],
    [parseConflist, '{"name":"x","plugins":[{"type":"a"},{}]}', /^has no "type" in plugins\[1\]/],
    [parseConflist, '{"name":"x","plugins":[{"type":"../../bin/sh"}]}', /must be a plain file name$/],
    [parseConflist, '{"name":"x","plugins":[{"type":"a","capabilities":["dns"]}]}', /^has "capabilities" in plugins\[0\]/],
    [parseConflist, '{"name":"x","cniVersion":1,"plugins":[{"type":"a"}]}', /^has the cniVersion 1, which is no version/],
    [parseConflist, '{"name":"x","disableCheck":"maybe","plugins":[{"type":"a"}]}', /^has "maybe" as "disableCheck"/],
    [parseConf, '{"name":"x","plugins":[{"type":"a"}]}', /rename it to end in \.conflist/],
    [parseConf, '{"name":"x"}', /^has no "type"/],
  ]
  for (const [parse, text, message] of cases) assert.throws(() => parse(text), { message }, text)
})

test('files are taken in byte order of their names, as many as wanted, and only configuration files', async () => {
  using sandbox = new Sandbox()
  sandbox.conf('20-b.conflist', list('b'))
  sandbox.conf('10-a.conf', { name: 'a', type: 'bridge' })
  sandbox.conf('B.json', { name: 'upper', type: 'bridge' })
  sandbox.conf('05-note.txt', 'no')
  sandbox.conf('06-old.conflist.bak', 'no')
  mkdirSync(join(sandbox.confDir, '07-dir.conflist'))
  writeFileSync(join(sandbox.dir, 'elsewhere'), JSON.stringify(list('linked')))
  symlinkSync(join(sandbox.dir, 'elsewhere'), join(sandbox.confDir, '30-link.conflist'))
  const names = async (max: number): Promise<string[]> => (await loadConfDir(sandbox.confDir, max)).networks.map(({ list }) => list.name)
  assert.deepEqual(await names(0), ['a', 'b', 'linked', 'upper'])
  assert.deepEqual(await names(1), ['a'])
  assert.deepEqual(await names(2), ['a', 'b'])
  rmSync(sandbox.confDir, { recursive: true })
  assert.deepEqual([(await loadConfDir(sandbox.confDir, 0)).exists, await names(0)], [false, []])
})

test('a broken file is passed over with its problem, but keeps its place while its last good version is known', async () => {
  using sandbox = new Sandbox()
  const first = sandbox.conf('10-a.conflist', '{')
  sandbox.conf('20-b.conflist', list('b'))
  const fresh = await loadConfDir(sandbox.confDir, 1)
  assert.deepEqual(fresh.networks.map(({ list }) => list.name), ['b'])
  assert.deepEqual(fresh.problems.map(({ file, lastGoodInUse }) => [file, lastGoodInUse]), [[first, false]])

  sandbox.conf('10-a.conflist', list('a'))
  const good = await loadConfDir(sandbox.confDir, 1, fresh.good)
  assert.deepEqual([good.networks.map(({ list }) => list.name), good.problems], [['a'], []])
  sandbox.conf('10-a.conflist', '')
  const broken = await loadConfDir(sandbox.confDir, 1, good.good)
  assert.deepEqual([broken.networks.map(({ list }) => list.name), broken.problems], [['a'], [{ file: first, problem: 'is empty', lastGoodInUse: true }]])
  rmSync(first)
  assert.deepEqual((await loadConfDir(sandbox.confDir, 1, broken.good)).networks.map(({ list }) => list.name), ['b'])
})

test('plugins of a network in a folder of their own follow those of the list, and are kept with it', async () => {
  using sandbox = new Sandbox()
  sandbox.conf('10-a.conflist', list('multi'))
  mkdirSync(join(sandbox.confDir, 'multi'))
  sandbox.conf('multi/20-z.conf', { type: 'tuning' })
  sandbox.conf('multi/10-y.conf', { type: 'firewall' })
  const [network] = (await loadConfDir(sandbox.confDir, 1)).networks
  assert.deepEqual(network?.list.plugins.map(({ type }) => type), ['bridge', 'firewall', 'tuning'])
  assert.deepEqual(parseConflist(network.list.source).plugins, network.list.plugins)
  sandbox.conf('multi/10-y.conf', '{}')
  assert.match((await loadConfDir(sandbox.confDir, 1)).problems[0]?.problem ?? '', /^needs .*multi\/10-y\.conf, which has no "type"/)
  sandbox.conf('10-a.conflist', list('multi', { loadOnlyInlinedPlugins: true }))
  assert.deepEqual((await loadConfDir(sandbox.confDir, 1)).networks[0]?.list.plugins.length, 1)
})
