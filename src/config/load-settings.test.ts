import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { ConfigError, type Diagnostic, formatDiagnostics } from './diagnostics.ts'
import { checkConfig, loadSettings } from './load-settings.ts'
import { cgroupDriverOf, formatSource, sourceOf } from './settings.ts'
import { TestHost } from './test-host.ts'

const fixture = (name: string): string => new URL(`../../test/fixtures/config/${name}`, import.meta.url).pathname

/** The real files name real directories, which this machine may or may not have. */
function isAboutFile({ code }: Diagnostic): boolean {
  return code !== 'missing-path' && code !== 'missing-plugin'
}

/** The findings about a file, without the temporary directory. */
function findings(host: TestHost, text: string): string {
  const file = host.write('config.toml', text)
  return formatDiagnostics(checkConfig(file, { host: host.host })).replaceAll(`${host.directory}/`, '/').replaceAll('/config.toml:', '')
}

test('without any file, the built-in defaults', () => {
  using host = new TestHost()
  const { settings, sources, diagnostics, files } = loadSettings({ host: host.host })
  assert.deepEqual(diagnostics, [])
  assert.deepEqual(files, [])
  assert.deepEqual([...sources], [])
  assert.equal(settings.shim.listen, 'unix:///run/cri-shim/cri-shim.sock')
  assert.equal(settings.shim.containerd, 'unix:///run/containerd/containerd.sock')
  assert.equal(settings.shim.root, '/var/lib/cri-shim')
  assert.equal(settings.shim.state, '/run/cri-shim')
  assert.equal(settings.shim.metricsAddress, '127.0.0.1:10270')
  assert.equal(settings.shim.logLevel, 'info')
  assert.equal(settings.sandboxImage, 'registry.k8s.io/pause:3.10')
  assert.deepEqual(settings.pinnedImages, { sandbox: 'registry.k8s.io/pause:3.10' })
  assert.equal(settings.snapshotter, 'overlayfs')
  assert.equal(settings.disableSnapshotAnnotations, true)
  assert.equal(settings.discardUnpackedLayers, false)
  assert.equal(settings.maxConcurrentDownloads, 3)
  assert.equal(settings.imagePullProgressTimeoutMs, 300_000)
  assert.deepEqual(settings.registry, { configPath: [], headers: {}, mirrors: {}, configs: {}, auths: {}, credentials: {}, credentialHelperDir: '' })
  assert.equal(settings.statsCollectPeriodMs, 10_000)
  assert.equal(settings.maxContainerLogLineSize, 16_384)
  assert.equal(settings.selinuxCategoryRange, 1024)
  assert.equal(settings.enableUnprivilegedPorts, true)
  assert.equal(settings.enableUnprivilegedIcmp, true)
  assert.equal(settings.tolerateMissingHugetlbController, true)
  assert.equal(settings.drainExecSyncIoTimeoutMs, 10_000)
  assert.deepEqual(settings.cdiSpecDirs, ['/etc/cdi', '/var/run/cdi'])
  assert.deepEqual(settings.streaming, { address: '127.0.0.1', port: 0, idleTimeoutMs: 14_400_000, enableTls: false, certFile: '', keyFile: '' })
  assert.equal(settings.defaultRuntimeName, 'runc')
  assert.deepEqual(Object.keys(settings.runtimes), ['runc'])
  assert.equal(settings.runtimes['runc']?.runtimeType, 'io.containerd.runc.v2')
  assert.deepEqual(settings.runtimes['runc']?.options, {
    kind: 'runc',
    systemdCgroup: false,
    binaryName: '',
    root: '',
    shimCgroup: '',
    noPivotRoot: false,
    noNewKeyring: false,
    ioUid: 0,
    ioGid: 0,
    criuImagePath: '',
    criuWorkPath: '',
  })
})

test('everything is frozen', () => {
  using host = new TestHost()
  const { settings } = loadSettings({ host: host.host })
  const visit = (value: unknown, path: string): void => {
    if (typeof value !== 'object' || value === null) return
    assert.ok(Object.isFrozen(value), path)
    for (const [key, child] of Object.entries(value)) visit(child, `${path}.${key}`)
  }
  visit(settings, 'settings')
})

test('the first default file that exists is read', () => {
  using host = new TestHost()
  host.write('etc/containerd/config.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "two"\n')
  assert.equal(loadSettings({ host: host.host }).settings.sandboxImage, 'two')
  host.write('etc/cri-shim/config.toml', '[plugins."io.cri-shim.v1"]\nlog_level = "debug"\n')
  const { settings, files } = loadSettings({ host: host.host })
  assert.equal(settings.shim.logLevel, 'debug')
  assert.equal(settings.sandboxImage, 'registry.k8s.io/pause:3.10')
  assert.deepEqual(files, [host.path('etc/cri-shim/config.toml')])
})

test('a file that is named must exist', () => {
  using host = new TestHost()
  assert.throws(() => loadSettings({ file: host.path('none.toml'), host: host.host }), /none\.toml: error: cannot read the configuration: there is no such file/)
})

for (const name of ['containerd-1.6-default.toml', 'containerd-2.1-default.toml']) {
  test(`${name}, as containerd prints it, is read without a word and means the defaults`, () => {
    using host = new TestHost()
    const { settings, diagnostics } = loadSettings({ file: fixture(name), host: host.host })
    assert.deepEqual(diagnostics.filter(isAboutFile), [])
    const { settings: defaults } = loadSettings({ host: host.host })
    const old = name.includes('1.6')
    assert.deepEqual(settings, {
      ...defaults,
      ...(old ? { sandboxImage: 'registry.k8s.io/pause:3.6', pinnedImages: { sandbox: 'registry.k8s.io/pause:3.6' }, enableUnprivilegedPorts: false, enableUnprivilegedIcmp: false } : {}),
      cni: { ...defaults.cni, binDirs: old ? ['/opt/cni/bin'] : ['/usr/lib/cni', '/opt/cni/bin'] },
    })
  })
}

test('a kubeadm node of version 2', () => {
  using host = new TestHost()
  const file = host.write('kubeadm.toml', readFileSync(fixture('kubeadm-v2.toml'), 'utf8').replace('/etc/containerd/conf.d', '@/conf.d'))
  const { settings, sources, diagnostics } = loadSettings({ file, host: host.host })
  assert.deepEqual(diagnostics.filter(isAboutFile), [])
  assert.equal(settings.sandboxImage, 'registry.k8s.io/pause:3.9')
  assert.deepEqual(settings.cni.binDirs, ['/opt/cni/bin'])
  assert.deepEqual(settings.registry.configPath, ['/etc/containerd/certs.d', '/etc/docker/certs.d'])
  assert.deepEqual(settings.registry.configs, { 'registry.example.com': { auth: { username: 'puller', password: 'hunter2', auth: '', identityToken: '' } } })
  assert.equal(cgroupDriverOf(settings), 'systemd')
  const { kata, nvidia } = settings.runtimes
  assert.deepEqual(kata?.options, { kind: 'generic', typeUrl: '', configPath: '/opt/kata/share/defaults/kata-containers/configuration.toml', configBody: '' })
  assert.deepEqual(kata?.podAnnotations, ['io.katacontainers.*'])
  assert.equal(nvidia?.options.kind === 'runc' ? nvidia.options.binaryName : '', '/usr/bin/nvidia-container-runtime')
  assert.equal(formatSource(sourceOf(sources, 'runtimes', 'runc', 'options', 'systemdCgroup')), `${file}:27`)
  assert.equal(formatSource(sourceOf(sources, 'shim', 'containerd')), `${file}:9 (grpc.address)`)
  assert.equal(formatSource(sourceOf(sources, 'enableSelinux')), 'default')
})

test('the same settings in versions 1, 2 and 3', () => {
  using host = new TestHost()
  const body = (id: string): string => `
[plugins.${id}]
  sandbox_image = "pause:1"
  stats_collect_period = 7
  enable_selinux = true
  stream_server_port = "10010"
  [plugins.${id}.containerd]
    snapshotter = "zfs"
    default_runtime_name = "crun"
    [plugins.${id}.containerd.runtimes.crun]
      runtime_type = "io.containerd.runc.v2"
      sandbox_mode = "shim"
      options = { SystemdCgroup = true, BinaryName = "crun" }
  [plugins.${id}.cni]
    bin_dir = "/cni"
`
  const load = (text: string): unknown => loadSettings({ file: host.write('config.toml', text), host: host.host }).settings
  const one = load(body('cri'))
  const two = load(`version = 2\n${body('"io.containerd.grpc.v1.cri"')}`)
  const three = load(`version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'zfs'
  stats_collect_period = 7
  pinned_images = { sandbox = 'pause:1' }
[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = true
  cni.bin_dirs = ['/cni']
  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'crun'
    runtimes.crun.runtime_type = 'io.containerd.runc.v2'
    runtimes.crun.sandboxer = 'shim'
    runtimes.crun.options.SystemdCgroup = true
    runtimes.crun.options.BinaryName = 'crun'
[plugins.'io.containerd.grpc.v1.cri']
  stream_server_port = '10010'
`)
  assert.deepEqual(one, two)
  assert.deepEqual(two, three)
  const { settings } = loadSettings({ file: host.path('config.toml'), host: host.host })
  assert.equal(settings.statsCollectPeriodMs, 7000)
  assert.equal(settings.streaming.port, 10_010)
  assert.equal(settings.runtimes['crun']?.sandboxer, 'shim')
  assert.equal(settings.snapshotter, 'zfs')
})

test('imports win key by key, arrays are replaced, versions may be mixed', () => {
  using host = new TestHost()
  host.write('conf.d/1.toml', `version = 3
[plugins.'io.containerd.cri.v1.runtime']
  enable_selinux = false
  cdi_spec_dirs = ['/c']
  containerd.runtimes.runc.options.SystemdCgroup = true
`)
  host.write('conf.d/2.toml', '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nBinaryName = "crun"\n')
  const file = host.write('config.toml', `version = 2
imports = ["conf.d/*.toml"]
[plugins."io.containerd.grpc.v1.cri"]
  enable_selinux = true
  cdi_spec_dirs = ["/a", "/b"]
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "/net"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    Root = "/r"
`)
  const { settings, sources, diagnostics } = loadSettings({ file, host: host.host })
  assert.deepEqual(diagnostics, [])
  assert.equal(settings.enableSelinux, false)
  assert.deepEqual(settings.cdiSpecDirs, ['/c'])
  assert.equal(settings.cni.confDir, '/net')
  const options = settings.runtimes['runc']?.options
  assert.ok(options?.kind === 'runc')
  assert.deepEqual([options.systemdCgroup, options.binaryName, options.root], [true, 'crun', '/r'])
  assert.equal(formatSource(sourceOf(sources, 'enableSelinux')), `${host.path('conf.d/1.toml')}:3`)
  assert.equal(formatSource(sourceOf(sources, 'runtimes', 'runc', 'options', 'binaryName')), `${host.path('conf.d/2.toml')}:2`)
})

test('flags win over the file, and are checked', () => {
  using host = new TestHost()
  const file = host.write('config.toml', '[plugins."io.cri-shim.v1"]\nroot = "/a"\nlisten = "/run/x.sock"\nmetrics_address = ""\n')
  const overrides = { root: '/b', containerd: '/c.sock', logLevel: 'trace', metricsAddress: '[::1]:0' }
  const plain = loadSettings({ file, host: host.host })
  assert.equal(plain.settings.shim.metricsAddress, '')
  assert.equal(plain.settings.shim.listen, 'unix:///run/x.sock')
  const { settings, sources } = loadSettings({ file, overrides, host: host.host })
  assert.deepEqual(settings.shim, { listen: 'unix:///run/x.sock', containerd: 'unix:///c.sock', root: '/b', state: '/run/cri-shim', metricsAddress: '[::1]:0', logLevel: 'trace', tracing: plain.settings.shim.tracing, audit: plain.settings.shim.audit })
  assert.equal(formatSource(sourceOf(sources, 'shim', 'root')), 'flag --root')
  assert.equal(loadSettings({ file, overrides: { metricsAddress: '' }, host: host.host }).settings.shim.metricsAddress, '')
  const bad = { root: 'b', containerd: 'tcp://x', logLevel: 'loud', metricsAddress: 'x', listen: '' }
  assert.throws(
    () => loadSettings({ file, overrides: bad, host: host.host }),
    (error) => {
      assert.ok(error instanceof ConfigError)
      for (const flag of ['--root must be an absolute path', '--containerd must be a unix socket', '--log-level must be one of "trace"', '--metrics-address must be HOST:PORT', '--listen must not be empty']) {
        assert.ok(error.message.includes(`error: ${flag}`), `${flag} in ${error.message}`)
      }
      return true
    },
  )
})

test('containerd\'s address: our key, else grpc.address (or its plugin section in version 4)', () => {
  using host = new TestHost()
  const load = (text: string): string => loadSettings({ file: host.write('config.toml', text), host: host.host }).settings.shim.containerd
  assert.equal(load('version = 2\n[grpc]\naddress = "/x.sock"'), 'unix:///x.sock')
  assert.equal(load('version = 2\n[grpc]\naddress = "/x.sock"\n[plugins."io.cri-shim.v1"]\ncontainerd = "unix:///y.sock"'), 'unix:///y.sock')
  assert.equal(load('version = 4\n[plugins."io.containerd.server.v1.grpc"]\naddress = "/z.sock"'), 'unix:///z.sock')
  assert.equal(load('version = 2\n[grpc]\naddress = ""'), 'unix:///run/containerd/containerd.sock')
})

test('what containerd 2.1 is told about its own pulls elsewhere counts where it would: not in a file of 1.x, not beside settings that only the CRI section has', () => {
  using host = new TestHost()
  const pulls = (text: string): readonly [number, boolean] => {
    const { settings, diagnostics } = loadSettings({ file: host.write('config.toml', text), host: host.host })
    assert.deepEqual(diagnostics, [])
    return [settings.maxConcurrentDownloads, settings.disableSnapshotAnnotations]
  }
  const images = '[plugins."io.containerd.cri.v1.images"]\n'
  const transfer = '[plugins."io.containerd.transfer.v1.local"]\nmax_concurrent_downloads = 8\n'
  const proxy = (value: string): string => `[proxy_plugins.stargz]\ntype = "snapshot"\naddress = "/s"\n[proxy_plugins.stargz.exports]\nenable_remote_snapshot_annotations = ${value}\n`
  const stargz = `version = 3\n${images}snapshotter = "stargz"\n`
  assert.deepEqual(pulls(`${stargz}${transfer}${proxy('"true"')}`), [8, false])
  assert.deepEqual(pulls(`${stargz}max_concurrent_downloads = 3\ndisable_snapshot_annotations = true\n${transfer}${proxy('"true"')}`), [8, false], 'a printed default')
  assert.deepEqual(pulls(`${stargz}${proxy('"false"')}`), [3, true])
  assert.deepEqual(pulls(`${stargz}${proxy('true')}`), [3, true], 'containerd wants a string')
  assert.deepEqual(pulls(`version = 3\n${proxy('"true"')}`), [3, true], 'nobody uses it')
  assert.deepEqual(pulls(`version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.lazy]\nruntime_type = "io.containerd.runc.v2"\nsnapshotter = "stargz"\n${proxy('"true"')}`), [3, false])
  assert.deepEqual(pulls(`${stargz}use_local_image_pull = true\n${transfer}${proxy('"true"')}`), [3, true])
  assert.deepEqual(pulls(`${stargz}max_concurrent_downloads = 5\n${transfer}${proxy('"true"')}`), [5, true])
  assert.deepEqual(pulls(`${stargz}image_pull_with_sync_fs = true\n${transfer}`), [3, true])
  assert.deepEqual(pulls(`version = 3\n${images}disable_snapshot_annotations = false\n${transfer}`), [3, false])
  assert.deepEqual(pulls(`version = 3\n${transfer}[plugins."io.containerd.cri.v1.images".registry.mirrors."docker.io"]\nendpoint = ["https://m"]\n`), [3, true])
  assert.deepEqual(pulls(`version = 2\n${transfer}`), [3, true])
  const { sources } = loadSettings({ file: host.write('config.toml', `version = 3\n${transfer}`), host: host.host })
  assert.match(formatSource(sourceOf(sources, 'maxConcurrentDownloads')), /config\.toml:3.*containerd's transfer plugin/)
})

test('files with blockio and RDT classes: our keys, else those of containerd\'s tasks service', () => {
  using host = new TestHost()
  const load = (text: string): readonly string[] => {
    const { settings, sources } = loadSettings({ file: host.write('config.toml', text), host: host.host })
    return [settings.blockioConfigFile, settings.rdtConfigFile, formatSource(sourceOf(sources, 'blockioConfigFile')).replace(/^.*config\.toml/, '')]
  }
  const service = '[plugins."io.containerd.service.v1.tasks-service"]\nblockio_config_file = "/b.yaml"\nrdt_config_file = "/r.yaml"\n'
  assert.deepEqual(load('version = 2'), ['', '', 'default'])
  assert.deepEqual(load(`version = 2\n${service}`), ['/b.yaml', '/r.yaml', ':3 (containerd\'s blockio_config_file)'])
  assert.deepEqual(load(`version = 3\n${service}[plugins."io.cri-shim.v1"]\nblockio_config_file = "/own.yaml"`), ['/own.yaml', '/r.yaml', ':6'])
  assert.throws(() => load('version = 2\n[plugins."io.containerd.service.v1.tasks-service"]\nrdt_config_file = "r.yaml"'), /rdt_config_file .*absolute/)
})

test('Debian\'s plugin directory is used as well when nothing is set and the usual one is empty', () => {
  using host = new TestHost()
  const binDirs = (text: string): readonly string[] => loadSettings({ file: host.write('config.toml', text), host: host.host }).settings.cni.binDirs.map((path) => path.slice(host.directory.length))
  assert.deepEqual(binDirs(''), ['/opt/cni/bin', '/usr/lib/cni'])
  host.mkdir('opt/cni/bin')
  assert.deepEqual(binDirs(''), ['/opt/cni/bin', '/usr/lib/cni'])
  host.write('opt/cni/bin/bridge', '', 0o755)
  assert.deepEqual(binDirs(''), ['/opt/cni/bin'])
  assert.deepEqual(binDirs(`version = 2\n[plugins."io.containerd.grpc.v1.cri".cni]\nbin_dir = "@/mine"`), ['/mine'])
})

test('a generic shim gets the whole options table when it names no ConfigPath', () => {
  using host = new TestHost()
  const file = host.write('config.toml', `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wasm]
  runtime_type = "io.containerd.spin.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wasm.options]
    SystemdCgroup = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.wasm.options.deep]
      n = 3
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bare]
  runtime_type = "io.containerd.runsc.v1"
`)
  const { runtimes } = loadSettings({ file, host: host.host }).settings
  assert.deepEqual(runtimes['wasm']?.options, { kind: 'generic', typeUrl: '', configPath: '', configBody: 'SystemdCgroup = true\n\n[deep]\nn = 3\n' })
  assert.deepEqual(runtimes['bare']?.options, { kind: 'generic', typeUrl: '', configPath: '', configBody: '' })
})

test('containerd 1.x\'s default_runtime and untrusted_workload_runtime are taken over, with a warning', () => {
  using host = new TestHost()
  const file = host.write('config.toml', `[plugins.cri.containerd.default_runtime]
  runtime_type = "io.containerd.runc.v2"
  options = { SystemdCgroup = true }
[plugins.cri.containerd.untrusted_workload_runtime]
  runtime_type = "io.containerd.kata.v2"
`)
  const { settings, diagnostics } = loadSettings({ file, host: host.host })
  assert.equal(settings.defaultRuntimeName, 'default')
  assert.equal(cgroupDriverOf(settings), 'systemd')
  assert.deepEqual(Object.keys(settings.runtimes).sort(), ['default', 'runc', 'untrusted'])
  assert.deepEqual(diagnostics.map(({ severity, line }) => `${severity} ${line}`), ['warning 1', 'warning 4'])
})

test('names of JavaScript\'s own are names like any other', () => {
  using host = new TestHost()
  const file = host.write('config.toml', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes."__proto__"]\nruntime_type = "io.containerd.kata.v2"\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "constructor"')
  assert.throws(() => loadSettings({ file, host: host.host }), /default_runtime_name is "constructor", but there is no/)
})

const V2 = '[plugins."io.containerd.grpc.v1.cri"]'
const V3R = "[plugins.'io.containerd.cri.v1.runtime']"
const V3I = "[plugins.'io.containerd.cri.v1.images']"

// What a person writes, and what the first finding must say.
const MISTAKES: readonly (readonly [name: string, text: string, expected: RegExp])[] = [
  ['SystemCgroup', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\n  SystemCgroup = true', /^3:3: error: unknown key SystemCgroup in .*runc\.options\]: did you mean SystemdCgroup\?/],
  ['SystemdCgroup at the root, v2', `version = 2\n${V2}\nSystemdCgroup = true`, /^3:1: error: SystemdCgroup has no effect in .*: it belongs in \[plugins\."io\.containerd\.grpc\.v1\.cri"\.containerd\.runtimes\.runc\.options\]/],
  ['SystemdCgroup at the root, v3', `version = 3\n${V3R}\nSystemdCgroup = true`, /^3:1: error: .*belongs in \[plugins\."io\.containerd\.cri\.v1\.runtime"\.containerd\.runtimes\.runc\.options\]/],
  ['SystemdCgroup beside the options', `version = 2\n${V2}\ncontainerd.runtimes.crun = { runtime_type = "io.containerd.runc.v2", SystemdCgroup = true }`, /^3:70: error: .*belongs in .*runtimes\.crun\.options\]/],
  ['SystemCgroup at the root', `version = 2\n${V2}\nSystemCgroup = true`, /^3:1: error: unknown key SystemCgroup .*write SystemdCgroup in .*runc\.options\] instead/],
  ['systemd_cgroup = true', `version = 2\n${V2}\nsystemd_cgroup = true`, /^3:1: error: systemd_cgroup .* has no effect: set SystemdCgroup in containerd\.runtimes\.runc\.options/],
  ['sandbox_image under options', 'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nsandbox_image = "x"', /^3:1: error: sandbox_image has no effect in .*: it belongs in \[plugins\."io\.containerd\.grpc\.v1\.cri"\]/],
  ['sandbox_image under options, v3', `version = 3\n${V3R}\ncontainerd.runtimes.runc.options.sandbox_image = "x"`, /^3:1: error: .*write sandbox in \[plugins\."io\.containerd\.cri\.v1\.images"\.pinned_images\]/],
  ['sandbox_image in v3 images', `version = 3\n${V3I}\nsandbox_image = "x"`, /^3:1: error: .*write sandbox in .*pinned_images\]/],
  ['sandbox_image in v3 runtime', `version = 3\n${V3R}\nsandbox_image = "x"`, /^3:1: error: .*write sandbox in .*pinned_images\]/],
  ['pinned_images in v2', `version = 2\n${V2}\npinned_images = { sandbox = "x" }`, /^3:1: error: .*write sandbox_image in \[plugins\."io\.containerd\.grpc\.v1\.cri"\]/],
  ['v2 section in a v3 file', 'version = 3\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "x"', /^3:1: error: sandbox_image in .* is not read: this is the place of a version 2 file, and this file says version = 3\. Move sandbox_image to .*pinned_images\] as sandbox/],
  ['v2 runtime table in a v3 file', 'version = 3\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true', /^2:2: error: containerd in .* is not read/],
  ['v3 section in a v2 file', `version = 2\n${V3R}\nenable_selinux = true`, /^2:2: error: enable_selinux in .* is not read: this is the place of a version 3 file, and this file says version = 2\. Write version = 3/],
  ['a leftover that changes nothing', `version = 3\n${V3R}\ncontainerd.runtimes.runc.options.SystemdCgroup = true\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]\nSystemdCgroup = true`, /^4:2: warning: .*What it says is in force without it$/],
  ['v1 section in a v2 file', 'version = 2\n[plugins.cri]\nenable_selinux = true', /^2:2: error: enable_selinux in \[plugins\.cri\] is not read/],
  ['no version line', `${V2}\nenable_selinux = true`, /^1:1: warning: there is no version line.*write version = 2 at the top/],
  ['missing quotes', 'version = 2\n[plugins.io.containerd.grpc.v1.cri]\nsandbox_image = "x"', /^2:2: error: .*the plugin's name needs quotes, \[plugins\."io\.containerd\.grpc\.v1\.cri"\]/],
  ['misspelt section', "version = 3\n[plugins.'io.containerd.cri.v1.image']\nsnapshotter = 'x'", /^2:2: error: unknown plugin section .*did you mean \[plugins\."io\.containerd\.cri\.v1\.images"\]/],
  ['our section without io.', 'version = 3\n[plugins.cri-shim]\nroot = "/x"', /^2:2: error: .*did you mean \[plugins\."io\.cri-shim\.v1"\]/],
  ['misspelt table', `version = 2\n${V2}\nregisty.config_path = ""`, /^3:1: error: unknown table registy in .*did you mean registry\?/],
  ['snapshotter at the root', `version = 2\n${V2}\nsnapshotter = "zfs"`, /^3:1: error: snapshotter has no effect in .*: it belongs in .*\.containerd\]/],
  ['unknown key', `version = 2\n${V2}\nfoo_bar = 1`, /^3:1: warning: unknown key foo_bar in .*: it has no effect$/],
  ['a guess', `version = 2\n${V2}\nenable_selinx_x = true`, /^3:1: warning: unknown key enable_selinx_x .*did you mean enable_selinux\?/],
  ['other letters', `version = 2\n${V2}\nEnable_SELinux = true`, /^3:1: warning: Enable_SELinux in .* is read as enable_selinux/],
  ['our own unknown key', 'version = 3\n[plugins."io.cri-shim.v1"]\nloglevel = "info"', /^3:1: error: unknown key loglevel .*did you mean log_level/],
  ['string for bool', `version = 2\n${V2}\nenable_selinux = "true"`, /^3:1: error: .*enable_selinux must be true or false, without quotes; it is the string "true"/],
  ['string for int', `version = 2\n${V2}\nmax_concurrent_downloads = "3"`, /error: .*must be a whole number, without quotes; it is the string "3"/],
  ['int for port', `version = 2\n${V2}\nstream_server_port = 10010`, /error: .*must be a string: "10010"; it is the number 10010/],
  ['float', `version = 2\n${V2}\nmax_concurrent_downloads = 2.5`, /error: .*must be a whole number/],
  ['huge integer', `version = 2\n${V2}\nmax_concurrent_downloads = 9223372036854775807`, /error: .*must be at least 0, not 9223372036854775807/],
  ['out of range', `version = 2\n${V2}\nselinux_category_range = 4096`, /error: .*must be between 0 and 1024, not 4096/],
  ['log line size', `version = 2\n${V2}\nmax_container_log_line_size = -2`, /error: .*must be at least -1, not -2/],
  ['stats period', `version = 2\n${V2}\nstats_collect_period = 0`, /error: .*must be at least 1, not 0/],
  ['string for array', `version = 2\n${V2}\ncdi_spec_dirs = "/etc/cdi"`, /error: .*must be an array of strings: \["\/etc\/cdi"\]/],
  ['duration without unit', `version = 2\n${V2}\nstream_idle_timeout = "4"`, /error: .*is not a duration: "4"; write a number with a unit/],
  ['duration as number', `version = 2\n${V2}\ndrain_exec_sync_io_timeout = 10`, /error: .*must be a duration in quotes/],
  ['negative duration', `version = 2\n${V2}\nimage_pull_progress_timeout = "-1s"`, /error: .*must not be negative/],
  ['table for a value', `version = 2\n${V2}\nsandbox_image = { x = 1 }`, /^3:1: error: .*sandbox_image must be a string; it is a table/],
  ['value for a table', `version = 2\n${V2}\ncni = "/opt/cni/bin"`, /^3:1: error: .*cni must be a table/],
  ['ip_pref', `version = 2\n${V2}\ncni.ip_pref = "ipv5"`, /error: .*ip_pref must be one of "ipv4", "ipv6", "cni", not "ipv5"/],
  ['io_type', `version = 2\n${V2}\ncontainerd.runtimes.runc.io_type = "pipe"`, /error: .*io_type must be one of "fifo", "streaming"/],
  ['seccomp', `version = 2\n${V2}\nunset_seccomp_profile = "RuntimeDefault"`, /^3:1: error: unset_seccomp_profile must be "", "unconfined", "runtime\/default"/],
  ['relative path', `version = 2\n${V2}\ncni.conf_dir = "net.d"`, /error: .*conf_dir must be an absolute path/],
  ['config_path beside mirrors', `version = 2\n${V2}\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "@/etc"\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]\nendpoint = ["https://m"]`, /^6:1: error: registry\.config_path and registry\.mirrors exclude each other: containerd refuses the pair\. Put the mirrors into \/etc\/HOST\/hosts\.toml/],
  ['mirror without scheme', `version = 2\n${V2}\nregistry.mirrors."docker.io".endpoint = ["mirror.example.com"]`, /error: the mirror endpoint must be a URL/],
  ['unknown default runtime', `version = 2\n${V2}\ncontainerd.default_runtime_name = "crun"`, /^3:1: error: default_runtime_name is "crun", but there is no containerd\.runtimes\.crun: define it, or name one of runc/],
  ['a runtime without a type', `version = 2\n${V2}\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]`, /^3:2: error: the runtime kata has no runtime_type/],
  ['all devices allowed', `version = 2\n${V2}\ncontainerd.runtimes.runc.privileged_without_host_devices_all_devices_allowed = true`, /error: .*needs privileged_without_host_devices = true/],
  ['certificate without TLS', `version = 2\n${V2}\nx509_key_pair_streaming.tls_cert_file = "/c"`, /error: x509_key_pair_streaming is set, but enable_tls_streaming is false/],
  ['certificate without key', `version = 2\n${V2}\nenable_tls_streaming = true\nx509_key_pair_streaming.tls_cert_file = "/c"`, /^4:1: error: tls_cert_file is set without tls_key_file/],
  ['bin_dir and bin_dirs', `version = 3\n${V3R}\ncni.bin_dir = "/a"\ncni.bin_dirs = ["/b"]`, /^3:1: error: cni\.bin_dir and cni\.bin_dirs exclude each other/],
  ['port', `version = 2\n${V2}\nstream_server_port = "http"`, /^3:1: error: stream_server_port must be a port number/],
  ['socket path too long', `version = 3\n[plugins."io.cri-shim.v1"]\nlisten = "unix:///${'x'.repeat(120)}"`, /^3:1: error: listen has a path of 121 bytes; the kernel allows 107/],
  ['syntax', 'version = 2\n[plugins\n', /^2:\d+: error: not valid TOML/],
  ['option of the wrong type', `version = 2\n${V2}\ncontainerd.runtimes.runc.options.SystemdCgroup = "true"`, /^3:1: error: .*SystemdCgroup must be true or false, without quotes/],
]

for (const [name, text, expected] of MISTAKES) {
  test(`mistake: ${name}`, () => {
    using host = new TestHost()
    const first = findings(host, text).split('\n').find((line) => !line.includes('there is no directory')) ?? ''
    assert.match(first, expected)
  })
}

test('containerd\'s own sections and other plugins are not our business', () => {
  using host = new TestHost()
  const text = `version = 3
oom_score = -999
disabled_plugins = ["io.containerd.grpc.v1.cri"]
nonsense = 1
[grpc]
  uid = 0
[metrics]
  adress = "x"
[plugins.'io.containerd.nri.v1.nri']
  disable = "perhaps"
[plugins.'io.containerd.transfer.v1.local']
  config_path = 3
[plugins.'io.containerd.grpc.v1.introspection']
  x = 1
`
  assert.equal(findings(host, text), '')
})

test('all findings of a file are reported at once, in the order of the file', () => {
  using host = new TestHost()
  const text = `version = 2\n${V2}\nfoo = 1\nenable_selinux = 1\ncontainerd.runtimes.runc.options.SystemCgroup = true\n`
  assert.deepEqual(findings(host, text).split('\n').map((line) => line.split(':').slice(0, 3).join(':')), ['3:1: warning', '4:1: error', '5:1: error'])
})

test('warnings do not stop the start, errors do, with every finding in the message', () => {
  using host = new TestHost()
  const file = host.write('config.toml', `version = 2\n${V2}\nfoo = 1\n`)
  assert.equal(loadSettings({ file, host: host.host }).diagnostics[0]?.severity, 'warning')
  host.write('config.toml', `version = 2\n${V2}\nfoo = 1\nenable_selinux = 1\n`)
  assert.throws(
    () => loadSettings({ file, host: host.host }),
    (error) => error instanceof ConfigError && error.message.includes(`${file}:3:1: warning: `) && error.message.includes(`${file}:4:1: error: `) && error.diagnostics.length === 2,
  )
})

test('findings never repeat a secret', () => {
  using host = new TestHost()
  const text = `version = 2\n${V2}\nregistry.configs."r".auth = { password = 31337, auth = ["hunter2"] }\nregistry.headers = { Authorization = "hunter2" }\nregistry.mirrors."r".endpoint = ["ftp://u:hunter2@h/?t=hunter2"]\n`
  const all = findings(host, text)
  assert.equal(all.split('\n').length, 4)
  assert.doesNotMatch(all, /hunter2|31337/)
})

test('credentials of our own section: by host, with a file, a helper and pull secrets of other registries', () => {
  using host = new TestHost()
  const section = '[plugins."io.cri-shim.v1".registry'
  const write = (text: string): string => host.write('credentials.toml', `version = 2\n${text}`)
  const file = write(`${section}]\ncredential_helper_dir = "/opt/helpers"\n${section}.credentials."mirror.example:5000"]\nusername = "puller"\npassword = "hunter2"\n${section}.credentials."*.ecr.example"]\nhelper = "ecr-login"\nconfig_file = "/etc/docker.json"\npull_secrets_of = ["docker.io"]\n`)
  const { registry } = loadSettings({ file, host: host.host }).settings
  assert.equal(registry.credentialHelperDir, '/opt/helpers')
  const empty = { username: '', password: '', auth: '', identityToken: '', configFile: '', helper: '', pullSecretsOf: [] }
  assert.deepEqual(registry.credentials, {
    'mirror.example:5000': { ...empty, username: 'puller', password: 'hunter2' },
    '*.ecr.example': { ...empty, helper: 'ecr-login', configFile: '/etc/docker.json', pullSecretsOf: ['docker.io'] },
  })
  for (const [line, message] of [
    [`${section}.credentials."https://mirror.example"]\nusername = "x"\n`, /credentials\.toml:3:\d+: error: registry\.credentials\."https:\/\/mirror\.example": the name must be a host/],
    [`${section}.credentials."mirror.example"]\nhelper = "../evil"\n`, /helper must be the NAME of a program docker-credential-NAME, or an absolute path/],
    [`${section}.credentials."mirror.example"]\nconfig_file = "docker.json"\n`, /must be an absolute path/],
  ] as const) assert.throws(() => loadSettings({ file: write(line), host: host.host }), message)
})
