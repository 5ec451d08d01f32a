import assert from 'node:assert/strict'
import { chmodSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Code, CriError } from '../errors/cri-error.ts'
import { podIn, Sandbox, statusWhere, testSignal } from './test-support.ts'

const list = (name: string, type = 'fake'): Record<string, unknown> => ({ cniVersion: '1.0.0', name, plugins: [{ type }] })
const named = (name: string) => ({ networks }: { readonly networks: readonly { readonly name: string }[] }): boolean => networks[0]?.name === name
const write = (dir: string, file: string, content: unknown): void => writeFileSync(join(dir, file), JSON.stringify(content))

test('a directory that comes late, with its parents, is picked up; so are changed, added and removed files', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'exit 0')
  const confDir = join(sandbox.dir, 'etc', 'cni', 'net.d')
  const manager = sandbox.manager({ confDir })
  await manager.start()
  assert.equal(manager.status().ready, false)
  assert.equal(manager.status().reason, 'CNIConfigMissing')
  assert.match(manager.status().message, new RegExp(`no network conflist in ${confDir} \\(the directory does not exist\\): install a CNI network add-on`))
  await assert.rejects(manager.add(podIn('/x'), testSignal()), (error: unknown) => error instanceof CriError && error.code === Code.UNAVAILABLE && error.message.includes('install a CNI network add-on'))

  mkdirSync(join(sandbox.dir, 'etc'))
  mkdirSync(confDir, { recursive: true })
  write(confDir, '10-a.conflist', list('late'))
  const ready = await statusWhere(manager, 'the late directory', named('late'))
  assert.deepEqual([ready.ready, ready.reason, ready.message], [true, '', ''])
  assert.deepEqual(ready.networks, [{ name: 'late', file: join(confDir, '10-a.conflist'), cniVersion: '1.0.0', plugins: [{ type: 'fake', found: join(sandbox.binDir, 'fake') }] }])

  write(confDir, '10-a.conflist', list('changed'))
  await statusWhere(manager, 'the changed file', named('changed'))
  write(confDir, '05-b.conflist', list('earlier'))
  await statusWhere(manager, 'the added file', named('earlier'))
  rmSync(join(confDir, '05-b.conflist'))
  await statusWhere(manager, 'the removed file', named('changed'))
})

test('a directory that is removed, recreated, or swapped with its parent is followed', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'exit 0')
  const etc = join(sandbox.dir, 'etc')
  const confDir = join(etc, 'net.d')
  mkdirSync(confDir, { recursive: true })
  write(confDir, '10-a.conflist', list('one'))
  const manager = sandbox.manager({ confDir })
  await manager.start()
  assert.ok(named('one')(manager.status()))

  rmSync(confDir, { recursive: true })
  await statusWhere(manager, 'the removal', ({ ready }) => !ready)
  mkdirSync(confDir)
  write(confDir, '10-a.conflist', list('two'))
  await statusWhere(manager, 'the recreation', named('two'))

  const next = join(sandbox.dir, 'next')
  mkdirSync(join(next, 'net.d'), { recursive: true })
  write(join(next, 'net.d'), '10-a.conflist', list('three'))
  renameSync(etc, join(sandbox.dir, 'old'))
  renameSync(next, etc)
  await statusWhere(manager, 'the swap', named('three'))
  write(confDir, '10-a.conflist', list('four'))
  await statusWhere(manager, 'a change after the swap', named('four'))
})

test('a directory behind a link is followed, and so is the link', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'exit 0')
  const link = join(sandbox.dir, 'link')
  for (const [target, name] of [['v1', 'first'], ['v2', 'second']] as const) {
    mkdirSync(join(sandbox.dir, target))
    write(join(sandbox.dir, target), '10-a.conflist', list(name))
  }
  symlinkSync('v1', link)
  const manager = sandbox.manager({ confDir: link })
  await manager.start()
  assert.ok(named('first')(manager.status()))
  write(join(sandbox.dir, 'v1'), '10-a.conflist', list('first-changed'))
  await statusWhere(manager, 'a change behind the link', named('first-changed'))
  symlinkSync('v2', `${link}.new`)
  renameSync(`${link}.new`, link)
  await statusWhere(manager, 'the changed link', named('second'))
})

test('a broken file is passed over and named in status and log; one that breaks while in use stays in use', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'exit 0')
  const file = sandbox.conf('10-a.conflist', '{ "name": "a", }')
  const manager = sandbox.manager()
  await manager.start()
  assert.deepEqual([manager.status().ready, manager.status().reason], [false, 'CNIConfigInvalid'])
  assert.match(manager.status().message, new RegExp(`no valid network conflist in .*; ${file} is not valid JSON: .*line 1 column 16.*: it is passed over; correct or remove it`))
  assert.ok(sandbox.logged.lines.some((line) => line.includes('"level":"warn"') && line.includes(file)))

  sandbox.conf('20-b.conflist', list('b'))
  const second = await statusWhere(manager, 'the second file', named('b'))
  assert.equal(second.ready, true)
  assert.match(second.message, new RegExp(`^${file} is not valid JSON`))

  sandbox.conf('10-a.conflist', list('a'))
  await statusWhere(manager, 'the repaired file', named('a'))
  sandbox.conf('10-a.conflist', '{"name":')
  const broken = await statusWhere(manager, 'the file that broke', ({ message }) => message !== '')
  assert.ok(named('a')(broken) && broken.ready)
  assert.match(broken.message, /its last valid version stays in use/)
})

test('a binary that is missing, or cannot be run, is named; its installation is an event', async () => {
  using sandbox = new Sandbox()
  sandbox.conf('10-a.conflist', list('a'))
  const late = join(sandbox.dir, 'opt', 'cni', 'bin')
  const manager = sandbox.manager({ binDirs: [late, sandbox.binDir] })
  await manager.start()
  assert.match(manager.status().message, new RegExp(`^plugin binary fake not found in ${late}, ${sandbox.binDir}: install the CNI plugins`))
  const file = sandbox.plugin('fake', 'exit 0')
  await statusWhere(manager, 'the installed plugin', ({ ready }) => ready)
  chmodSync(file, 0o644)
  assert.match(manager.status().message, new RegExp(`plugin binary ${file} is not executable: chmod 0755`))
  mkdirSync(late, { recursive: true })
  writeFileSync(join(late, 'fake'), '#!/bin/sh\n', { mode: 0o755 })
  const status = await statusWhere(manager, 'the plugin in the late directory', ({ ready }) => ready)
  assert.equal(status.networks[0]?.plugins[0]?.found, join(late, 'fake'))
})

test('plugins of CNI 1.1 are asked whether they are ready', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', `cat > /dev/null; [ "$CNI_COMMAND" = STATUS ] || exit 1; [ -e "$dir/up" ] && exit 0; echo '{"code":50,"msg":"no BGP peers"}'; exit 1`)
  sandbox.conf('10-a.conflist', { ...list('a'), cniVersion: '1.1.0' })
  const manager = sandbox.manager()
  await manager.start()
  const down = await manager.probeStatus()
  assert.deepEqual([down.ready, down.reason], [false, 'CNIPluginNotReady'])
  assert.match(down.message, /plugin fake failed to STATUS: no BGP peers \(CNI error 50\); the plugin is not ready to take pods/)
  assert.equal(manager.status().ready, false)
  mkdirSync(join(sandbox.dir, 'up'))
  assert.equal((await manager.probeStatus()).ready, true)
})

test('pod CIDRs are rendered into the directory, once, and only when there is no network', async () => {
  using sandbox = new Sandbox()
  sandbox.plugin('fake', 'exit 0')
  const confTemplate = join(sandbox.dir, 'template')
  writeFileSync(confTemplate, `{"cniVersion":"1.0.0","name":"generated","plugins":[{"type":"fake","ipam":{"subnet":"{{.PodCIDR}}",
    "ranges":[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet":"{{$range}}"}]{{end}}],
    "routes":[{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst":"{{$route}}"}{{end}}]}}]}`)
  const confDir = join(sandbox.dir, 'new', 'net.d')
  const manager = sandbox.manager({ confDir, confTemplate })
  await manager.start()
  assert.equal(await manager.setPodCidrs([]), false)
  await assert.rejects(manager.setPodCidrs(['10.222.0.0/33']), (error: unknown) => error instanceof CriError && error.code === Code.INVALID_ARGUMENT && error.message.includes('10.222.0.0/33'))
  assert.equal(await manager.setPodCidrs(['10.222.0.0/24', ' fd00:10:222::/64']), true)
  assert.ok(named('generated')(manager.status()))
  assert.deepEqual((JSON.parse(sandbox.read('new/net.d/10-containerd-net.conflist')) as { plugins: unknown[] }).plugins[0], {
    type: 'fake',
    ipam: { subnet: '10.222.0.0/24', ranges: [[{ subnet: '10.222.0.0/24' }], [{ subnet: 'fd00:10:222::/64' }]], routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }] },
  })
  assert.equal(await manager.setPodCidrs(['10.9.0.0/24']), false)
  assert.match(sandbox.read('new/net.d/10-containerd-net.conflist'), /10\.222\.0\.0/)
})

test('a template that is wrong, or makes what is wrong, is named and writes nothing', async () => {
  using sandbox = new Sandbox()
  const confTemplate = join(sandbox.dir, 'template')
  const manager = sandbox.manager({ confTemplate })
  await manager.start()
  const rejects = async (pattern: RegExp): Promise<void> => {
    await assert.rejects(manager.setPodCidrs(['10.222.0.0/24']), (error: unknown) => error instanceof CriError && error.code === Code.FAILED_PRECONDITION && pattern.test(error.message))
  }
  await rejects(/cannot read the CNI configuration template .*ENOENT/)
  writeFileSync(confTemplate, '{"name":"x",\n"plugins":[{{printf .PodCIDR}}]}')
  await rejects(/template, line 2, column 14: the function "printf" is not supported/)
  writeFileSync(confTemplate, '{"name":"x","plugins":[{{.PodCIDR}}]}')
  await rejects(/makes is not valid JSON/)
  assert.equal(manager.status().reason, 'CNIConfigMissing')
  assert.equal(await sandbox.manager().setPodCidrs(['10.222.0.0/24']), false, 'no template is no error')
})
