import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatDiagnostics } from './diagnostics.ts'
import { checkConfig } from './load-settings.ts'
import { TestHost } from './test-host.ts'

const CRI = 'plugins."io.containerd.grpc.v1.cri"'

function findings(host: TestHost, body: string): string {
  const file = host.write('config.toml', `version = 2\n${body}`)
  return formatDiagnostics(checkConfig(file, { host: host.host })).replaceAll(`${host.directory}/`, '/')
}

test('config_path: a missing directory, with the one that was meant', () => {
  using host = new TestHost()
  const body = `[${CRI}.registry]\n  config_path = "@/etc/containerd/cert.d"\n`
  assert.equal(findings(host, body), '/config.toml:3:3: warning: registry.config_path: there is no directory /etc/containerd/cert.d, so no registry mirrors are used; make it, or take the setting out')
  host.mkdir('etc/containerd/certs.d')
  assert.match(findings(host, body), /:3:3: warning: .*did you mean \/etc\/containerd\/certs\.d\?$/)
  assert.equal(findings(host, body.replace('cert.d', 'certs.d')), '')
  // containerd's own default names two directories, of which most nodes have one.
  const pair = `[${CRI}.registry]\n  config_path = "@/etc/containerd/certs.d:@/etc/docker/certs.d"\n`
  assert.equal(findings(host, pair), '')
  assert.match(findings(host, pair.replace('docker/certs.d', 'containerd/cert.d')), /^.*: there is no directory \/etc\/containerd\/cert\.d, so no registry mirrors are taken from there; make it, or take it out$/)
  host.mkdir('etc/containerd/cert2.d')
  assert.match(findings(host, pair.replace('docker/certs.d', 'containerd/cert.d')), /so no registry mirrors are taken from there; did you mean \/etc\/containerd\/cert2\.d\?$/)
  host.write('etc/hosts.toml', '')
  assert.match(findings(host, body.replace('containerd/cert.d', 'hosts.toml')), /error: registry.config_path: \/etc\/hosts\.toml is a file; name the directory/)
  assert.match(findings(host, body.replace('@/etc/containerd/cert.d', 'etc')), /error: registry.config_path must hold absolute paths/)
})

test('certs.d that nobody reads', () => {
  using host = new TestHost()
  host.mkdir('etc/containerd/certs.d/docker.io')
  assert.match(findings(host, ''), /^warning: there are registry settings in \/etc\/containerd\/certs\.d, but .*Set config_path = /)
})

test('cni.bin_dir without the plugins that the first network names', () => {
  using host = new TestHost()
  const body = `[${CRI}.cni]\n  bin_dir = "@/opt/cni/bin"\n  conf_dir = "@/etc/cni/net.d"\n`
  assert.equal(findings(host, body), '', 'no network yet')
  host.write('etc/cni/net.d/10-pod.conflist', '{"name":"pod","plugins":[{"type":"bridge"},{"type":"portmap"}]}')
  host.write('etc/cni/net.d/20-other.conf', '{"name":"other","type":"macvlan"}')
  assert.match(findings(host, body), /^\/config\.toml:3:3: warning: \/etc\/cni\/net\.d\/10-pod\.conflist needs the CNI plugins bridge, portmap, which are not in \/opt\/cni\/bin; install them there/)
  host.write('usr/lib/cni/bridge', '', 0o755)
  host.write('usr/lib/cni/portmap', '', 0o755)
  assert.match(findings(host, body), /which are not in \/opt\/cni\/bin; they are in \/usr\/lib\/cni: set cni\.bin_dirs = \["\/usr\/lib\/cni"\]$/)
  host.write('opt/cni/bin/bridge', '', 0o755)
  assert.match(findings(host, body), /needs the CNI plugin portmap, which is not in /)
  host.write('opt/cni/bin/portmap', '', 0o644)
  assert.match(findings(host, body), /needs the CNI plugin portmap/, 'not executable')
  host.write('opt/cni/bin/portmap', '', 0o755)
  assert.equal(findings(host, body), '')
  assert.match(findings(host, `${body}  max_conf_num = 2\n`), /20-other\.conf needs the CNI plugin macvlan/)
  host.write('etc/cni/net.d/00-bad.conflist', '{"plugins":')
  assert.match(findings(host, body), /00-bad\.conflist is not a CNI configuration .* it is skipped$/)
})

test('the kubelet\'s cgroup driver', () => {
  using host = new TestHost()
  const systemd = `[${CRI}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n`
  host.write('var/lib/kubelet/config.yaml', 'apiVersion: kubelet.config.k8s.io/v1beta1\n# cgroupDriver: systemd\ncgroupDriver: cgroupfs\n')
  assert.match(findings(host, systemd), /^\/config\.toml:3:3: warning: the kubelet's cgroupDriver is cgroupfs \(.*\), but SystemdCgroup is true, which means systemd: set SystemdCgroup = false in containerd\.runtimes\.runc\.options$/)
  assert.equal(findings(host, ''), '')
  host.write('var/lib/kubelet/config.yaml', 'cgroupDriver: "systemd"\n')
  assert.equal(findings(host, systemd), '')
  assert.match(findings(host, ''), /^warning: the kubelet's cgroupDriver is systemd/)
  host.write('var/lib/kubelet/config.yaml', '{"kind":"KubeletConfiguration", "cgroupDriver": "systemd"}')
  assert.match(findings(host, ''), /^warning: the kubelet's cgroupDriver is systemd/)
  host.write('var/lib/kubelet/config.yaml', 'logging: {}\n')
  assert.equal(findings(host, ''), '')
})

test('runtimes that use different cgroup drivers', () => {
  using host = new TestHost()
  const crun = `[${CRI}.containerd.runtimes.crun]\n  runtime_type = "io.containerd.runc.v2"\n`
  const runc = `[${CRI}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n`
  assert.match(findings(host, `${runc}${crun}  options = { SystemdCgroup = false }\n`), /:6:15: warning: runtime crun uses the cgroup driver cgroupfs, the default runtime systemd: set SystemdCgroup = true/)
  assert.equal(findings(host, `${runc}${crun}  options.SystemdCgroup = true\n`), '')
  assert.equal(findings(host, `[${CRI}.containerd]\n  default_runtime_name = "crun"\n${crun}  options.SystemdCgroup = true\n`), '', 'nobody uses runc')
})

test('files that the start needs', () => {
  using host = new TestHost()
  host.write('spec.json', '{}')
  host.write('bad.json', '{')
  const runtime = (line: string): string => findings(host, `[${CRI}.containerd.runtimes.runc]\n  ${line}\n`)
  assert.equal(runtime('base_runtime_spec = "@/spec.json"'), '')
  assert.match(runtime('base_runtime_spec = "@/none.json"'), /:3:3: error: runtime runc: base_runtime_spec: cannot use \/none\.json: ENOENT/)
  assert.match(runtime('base_runtime_spec = "@/bad.json"'), /:3:3: error: .*bad\.json/)
  assert.match(runtime('cgroup_writable = true'), /:3:3: error: runtime runc: cgroup_writable needs cgroup v2/)
  host.write('sys/fs/cgroup/cgroup.controllers', 'cpu memory')
  assert.equal(runtime('cgroup_writable = true'), '')
  assert.match(runtime('runtime_path = "@/none"'), /:3:3: warning: .*not an executable file/)
  assert.match(runtime('options.BinaryName = "@/none"'), /:3:3: warning: .*not an executable file/)
  assert.equal(runtime('options.BinaryName = "crun"'), '')
  const tls = `[${CRI}]\n  enable_tls_streaming = true\n  x509_key_pair_streaming = { tls_cert_file = "@/spec.json", tls_key_file = "@/none.key" }\n`
  assert.match(findings(host, tls), /:4:\d+: error: x509_key_pair_streaming\.tls_key_file: cannot read \/none\.key/)
})
