import assert from 'node:assert/strict'
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { Code } from '../../errors/cri-error.ts'
import { apparmorProfile, DEFAULT_APPARMOR_PROFILE } from '../../oci-spec/apparmor.ts'
import { apparmorProfileText, loadedProfiles, profileOfAttribute } from '../../oci-spec/apparmor-profile.ts'
import { refusal } from '../../oci-spec/spec-fixtures.ts'
import { type ApparmorFacts, ApparmorProfiles } from './apparmor.ts'

/** A kernel made of a file, and an apparmor_parser that "loads" into it and keeps what it was given. */
async function node(t: TestContext, parser: 'works' | 'fails' | 'missing', loaded: readonly string[] = []) {
  const dir = await mkdtemp(join(tmpdir(), 'cri-shim-apparmor-'))
  t.after(() => rm(dir, { recursive: true, force: true }))
  const bin = join(dir, 'bin')
  const profilesFile = join(dir, 'profiles')
  const write = (names: readonly string[]): Promise<void> => writeFile(profilesFile, names.map((name) => `${name} (enforce)\n`).join(''))
  await write(loaded)
  await mkdir(bin)
  if (parser !== 'missing') {
    const load = `[ "$1" = -Kr ] || exit 9; cat "$2" > '${dir}/given'; echo x >> '${dir}/calls'; grep -q '^${DEFAULT_APPARMOR_PROFILE} ' '${profilesFile}' || echo '${DEFAULT_APPARMOR_PROFILE} (enforce)' >> '${profilesFile}'`
    await writeFile(join(bin, 'apparmor_parser'), `#!/bin/sh\n${parser === 'works' ? load : 'echo "syntax error at line 7" >&2; exit 1'}\n`)
    await chmod(join(bin, 'apparmor_parser'), 0o755)
  }
  const said: string[] = []
  const say = (_: unknown, message?: string): void => void said.push(message ?? '')
  const start = (managerProfile = 'unconfined', enabled = true) => new ApparmorProfiles({
    log: { info: say, warn: say }, enabled, stateDir: join(dir, 'state'), profilesFile, configDir: join(dir, 'apparmor.d'), searchPath: `${bin}:/usr/bin:/bin`, managerProfile: () => Promise.resolve(managerProfile),
  })
  const calls = async (): Promise<number> => (await readFile(join(dir, 'calls'), 'utf8').catch(() => '')).length / 2
  return { dir, said, start, calls, write, given: () => readFile(join(dir, 'given'), 'utf8') }
}

const settings = { disableApparmor: false }
const used = (hostFacts: ApparmorFacts, asked = ''): string | undefined => apparmorProfile({ apparmor: null, apparmorProfile: asked, privileged: false, unset: 'runtime-default', hostFacts, settings })

test('the default profile is loaded when it is missing, once, and again when somebody unloads it', async (t) => {
  const { start, calls, write, given, said, dir } = await node(t, 'works', ['other'])
  const profiles = start()
  const [facts] = await Promise.all([profiles.facts(), profiles.facts(), profiles.facts()])
  assert.deepEqual([facts.apparmorEnabled, [...facts.apparmorProfiles ?? []], facts.apparmorFault], [true, ['other', DEFAULT_APPARMOR_PROFILE], undefined])
  assert.equal(await calls(), 1)
  assert.match(await given(), /^profile cri-containerd\.apparmor\.d flags/m)
  assert.equal(used(facts), DEFAULT_APPARMOR_PROFILE)
  await profiles.facts()
  assert.equal(await calls(), 1)
  await write(['custom'])
  assert.deepEqual([...(await profiles.facts()).apparmorProfiles ?? []], ['custom', DEFAULT_APPARMOR_PROFILE])
  assert.equal(await calls(), 2)
  assert.equal(said.length, 2)
  assert.deepEqual(await readdir(join(dir, 'state')), ['apparmor-profile'])
})

test('a profile of before a restart stays; another text of it is loaded; one of somebody else stays as it is', async (t) => {
  const { start, calls, given, dir } = await node(t, 'works')
  await start().facts()
  await start().facts()
  assert.equal(await calls(), 1)
  await start('containerd-profile').facts()
  assert.equal(await calls(), 2)
  assert.match(await given(), /peer=containerd-profile,/)
  await rm(join(dir, 'state'), { recursive: true })
  await start().facts()
  assert.equal(await calls(), 2)
})

test('without apparmor_parser containers run unconfined, and who asks for the profile is refused with the remedy', async (t) => {
  const { start, said } = await node(t, 'missing', ['custom'])
  const profiles = start()
  const facts = await profiles.facts()
  await profiles.facts()
  assert.equal(said.length, 1)
  assert.match(said[0] ?? '', /apparmor_parser.* is missing.*install the package apparmor/)
  assert.equal(used(facts), undefined)
  assert.equal(used(facts, 'localhost/custom'), 'custom')
  assert.throws(() => used(facts, 'runtime/default'), refusal(Code.FAILED_PRECONDITION, /install the package apparmor/))
  assert.throws(() => used(facts, 'localhost/absent'), refusal(Code.FAILED_PRECONDITION, /"absent" is not loaded on this node: load it/))
})

test('a profile that cannot be loaded stops what would run without it, and nothing else', async (t) => {
  const { start, said } = await node(t, 'fails', ['custom'])
  const facts = await start().facts()
  assert.match(said[0] ?? '', /syntax error at line 7.*disable_apparmor = true/)
  for (const asked of ['', 'runtime/default']) assert.throws(() => used(facts, asked), refusal(Code.FAILED_PRECONDITION, /syntax error at line 7/))
  assert.equal(used(facts, 'unconfined'), undefined)
  assert.equal(used(facts, 'localhost/custom'), 'custom')
  const old = await node(t, 'fails', [DEFAULT_APPARMOR_PROFILE])
  await mkdir(join(old.dir, 'state'))
  await writeFile(join(old.dir, 'state', 'apparmor-profile'), 'of another version\n')
  assert.equal(used(await old.start().facts()), DEFAULT_APPARMOR_PROFILE)
  assert.match(old.said[0] ?? '', /older version of it stays in force/)
})

test('off, or without securityfs: no profile', async (t) => {
  const { start, calls, dir, said } = await node(t, 'works')
  assert.deepEqual(await start('unconfined', false).facts(), { apparmorEnabled: false, apparmorProfiles: new Set() })
  await rm(join(dir, 'profiles'))
  assert.equal((await start().facts()).apparmorEnabled, false)
  assert.match(said[0] ?? '', /mount securityfs/)
  assert.equal(await calls(), 0)
})

test('the profile\'s text follows what is installed, and no name gets into it that could end a rule', () => {
  const bare = apparmorProfileText('p', { managerProfile: 'unconfined', abi: false, tunables: false, abstractions: false })
  assert.match(bare, /^@\{PROC\}=\/proc\/$/m)
  assert.doesNotMatch(bare, /#include|^abi/m)
  assert.equal(bare.match(/peer=unconfined/g)?.length, 1)
  for (const rule of ['deny mount,', 'deny /sys/devices/virtual/powercap/** rwklx,', 'deny @{PROC}/sysrq-trigger rwklx,', 'deny @{PROC}/kcore rwklx,', 'deny /sys/firmware/** rwklx,']) assert.ok(bare.includes(`  ${rule}\n`), rule)
  const full = apparmorProfileText('p', { managerProfile: '/usr/bin/containerd', abi: true, tunables: true, abstractions: true })
  assert.match(full, /^abi <abi\/3\.0>,\n#include <tunables\/global>$/m)
  assert.match(full, /#include <abstractions\/base>[^]*peer=\/usr\/bin\/containerd,/)
  assert.deepEqual(['unconfined\n', '/usr/bin/containerd (enforce)\n', '', '\0', 'x, file,\n', 'docker-default (complain)'].map(profileOfAttribute), ['unconfined', '/usr/bin/containerd', 'unconfined', 'unconfined', 'unconfined', 'docker-default'])
  assert.deepEqual([...loadedProfiles('a (enforce)\nb//c (complain)\nd e (kill)\n')], ['a', 'b//c', 'd e'])
})
