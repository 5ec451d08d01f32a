import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { parse } from 'smol-toml'
import { KEYS, PLUGIN_IDS, RUNC_OPTIONS } from './keys.ts'
import { checkConfig, loadSettings } from './load-settings.ts'
import { renderDefault, renderEffective } from './render.ts'
import { TestHost } from './test-host.ts'

const fixture = (name: string): string => new URL(`../../test/fixtures/config/${name}`, import.meta.url).pathname

test('the effective settings can be loaded again and mean the same', () => {
  using host = new TestHost()
  const file = host.write('rich.toml', `version = 3
[plugins.'io.containerd.cri.v1.images']
  image_pull_progress_timeout = '1m30s'
  stats_collect_period = 3
  pinned_images = { sandbox = 'a', base = 'b' }
  registry.mirrors.'docker.io'.endpoint = ['https://m']
  registry.configs.'h:5000'.tls = { insecure_skip_verify = true, ca_file = '/ca' }
[plugins.'io.containerd.cri.v1.runtime']
  max_container_log_line_size = 0
  cni.ip_pref = ''
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.'my.kata']
    runtime_type = 'io.containerd.kata.v2'
    options = { a = 1, b = { c = 'x' } }
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
    runtime_type = 'io.containerd.runc.v2'
    pod_annotations = ['a.*', "quote\\"d"]
    options = { IoUid = 7, NoNewKeyring = true }
[plugins.'io.containerd.grpc.v1.cri']
  stream_idle_timeout = '0s'
[plugins.'io.cri-shim.v1']
  metrics_address = ''
  state = '/s'
`)
  for (const path of [file, fixture('containerd-1.6-default.toml'), fixture('containerd-2.1-default.toml')]) {
    const loaded = loadSettings({ file: path, host: host.host })
    const again = loadSettings({ file: host.write('again.toml', renderEffective(loaded)), host: host.host })
    assert.deepEqual(again.diagnostics.map(({ code }) => code).filter((code) => code !== 'missing-plugin'), [])
    assert.deepEqual(again.settings, loaded.settings)
  }
})

test('each line of the effective settings says where it came from; credentials are not printed', () => {
  using host = new TestHost()
  const file = fixture('kubeadm-v2.toml')
  const text = renderEffective(loadSettings({ file, overrides: { root: '/r' }, host: host.host }))
  assert.match(text, /\n {2}root = "\/r" # flag --root\n/)
  assert.match(text, /\n {2}state = "\/run\/cri-shim" # default\n/)
  assert.ok(text.includes(`\n  SystemdCgroup = true # ${file}:27\n`))
  assert.ok(text.includes(`\n  password = "[redacted]" # ${file}:`))
  assert.doesNotMatch(text, /hunter2/)
})

test('the default file loads without a finding and changes nothing, alone and with an import', () => {
  using host = new TestHost()
  const plain = host.write('default.toml', renderDefault())
  assert.deepEqual(checkConfig(plain, { host: host.host }), [])
  const loaded = loadSettings({ file: plain, host: host.host })
  assert.deepEqual(loaded.settings, loadSettings({ host: host.host }).settings)
  const importing = host.write('importing.toml', renderDefault({ imports: fixture('containerd-2.1-default.toml') }))
  const imported = loadSettings({ file: importing, host: host.host })
  assert.ok(imported.diagnostics.every(({ code }) => code === 'missing-plugin'))
  assert.deepEqual(imported.settings, loadSettings({ file: fixture('containerd-2.1-default.toml'), host: host.host }).settings)
})

test('the default file shows every setting with its default: with the comments taken away it says the same', () => {
  using host = new TestHost()
  const text = renderDefault()
  // Only lines that are settings or headers; examples with names of the user's choice stay as they are.
  const active = text.replaceAll(/^ {2}# ([A-Za-z_]+ = )/gm, '  $1').replaceAll(/^# (\[plugins)/gm, '$1')
  const file = host.write('active.toml', active)
  const { settings, diagnostics } = loadSettings({ file, host: host.host })
  assert.deepEqual(diagnostics, [])
  const { settings: defaults } = loadSettings({ host: host.host })
  const empty = { username: '', password: '', auth: '', identityToken: '' }
  assert.deepEqual(settings, {
    ...defaults,
    shim: { ...defaults.shim, tracing: { ...defaults.shim.tracing, headers: { base: '' } } },
    pinnedImages: { base: '', sandbox: defaults.sandboxImage },
    cni: { ...defaults.cni, binDirs: ['/opt/cni/bin'] },
    registry: {
      configPath: [],
      headers: {},
      mirrors: { 'docker.io': { endpoints: [] } },
      configs: { 'registry.example.com': { tls: { insecureSkipVerify: false, caFile: '', certFile: '', keyFile: '' }, auth: empty } },
      auths: { 'https://registry.example.com': empty },
      credentials: { 'registry.example.com': { ...empty, configFile: '', helper: '', pullSecretsOf: [] } },
      credentialHelperDir: '',
    },
  })
  const plugins = parse(active)['plugins']
  for (const key of KEYS) {
    if (key.setting === undefined || key.id.endsWith('.*')) continue
    const [section = '', ...path] = key.id.split('.')
    let value: unknown = (plugins as Record<string, unknown>)[PLUGIN_IDS[section as keyof typeof PLUGIN_IDS]]
    for (const part of path) value = Object.entries(value as Record<string, unknown>).find(([name]) => part === '*' || name === part)?.[1]
    assert.notEqual(value, undefined, key.id)
  }
})

test('the operators\' guide has every setting with its effect', () => {
  const guide = readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8')
  const place = (id: string): string => id.replace(/^[a-z]+\./, '').replace('runtimes.*', 'runtimes.NAME').replaceAll('*', 'NAME')
  const rows = [...KEYS.map((key) => ({ ...key, name: place(key.id) })), ...RUNC_OPTIONS].filter((row) => 'setting' in row)
  for (const { name, doc } of rows) {
    assert.ok(guide.split('\n').some((line) => line.startsWith(`| \`${name}\` |`) && line.endsWith(`| ${doc} |`)), `${name}: ${doc}`)
  }
})
