import { mkdir } from 'node:fs/promises'
import { accounts, busyboxRootfs } from './busybox.ts'
import { type Compression, type ImageFormat, type ImageRunConfig, addImage, addIndex, addLayer } from './image.ts'
import { ContentDir, type Descriptor } from './layout.ts'
import { type TarEntry, directory, file } from './tar.ts'
import { type Architecture, euidProgram, hostArchitecture, pauseProgram } from './tiny-elf.ts'

/** The registries whose names the catalogue uses: each needs a mirror entry that leads to the local registry. */
export const registryHosts = ['registry.k8s.io', 'k8s.gcr.io', 'gcr.io', 'docker.io'] as const

/** The pause image to configure as `sandbox_image`. The conformance specs remove other versions of it, never this one. */
export const sandboxImage = 'registry.k8s.io/pause:3.10'

/** The general-purpose image of the conformance specs. */
export const busyboxImage = 'registry.k8s.io/e2e-test-images/busybox:1.29-2'

/** A web server on port 80 that runs as `nginx` does: a master process, /var/run/nginx.pid, SIGQUIT to stop. */
export const webServerImage = 'registry.k8s.io/e2e-test-images/nginx:1.14-2'

const e2e = 'registry.k8s.io/e2e-test-images'
const staging = 'gcr.io/k8s-staging-cri-tools'

interface ImageSpec {
  readonly refs: readonly string[]
  readonly layers: readonly (readonly TarEntry[])[]
  readonly config: ImageRunConfig
  readonly format?: ImageFormat
  readonly compression?: Compression
  /** An index over amd64 and arm64, or this machine's manifest alone. Default: an index. */
  readonly index?: boolean
}

/**
 * A shell script that behaves as a web server's main process does: it writes a pid file, says that it is up, serves, and stops on the
 * signals of its real counterpart.
 */
function webServer(name: string, port: number, signals: string): readonly TarEntry[] {
  const script = `#!/bin/sh
trap 'kill "$server" 2>/dev/null; rm -f /var/run/${name}.pid; exit 0' ${signals}
httpd -f -p ${port} -h /srv/www &
server=$!
echo $$ > /var/run/${name}.pid
echo '${name}: listening on port ${port}'
wait "$server"
`
  return [
    file(`usr/sbin/${name}`, script, 0o755),
    directory('srv'),
    directory('srv/www'),
    file('srv/www/index.html', `<!DOCTYPE html>\n<title>${name}</title>\n<p>Served by the ${name} test image.\n`),
  ]
}

function specs(rootfs: readonly TarEntry[]): readonly ImageSpec[] {
  const shell: ImageRunConfig = { Cmd: ['sh'] }
  const marked = (mark: string): readonly (readonly TarEntry[])[] => [rootfs, [file(mark, '')]]
  const nginx: ImageRunConfig = { Entrypoint: ['nginx'], Cmd: ['-g', 'daemon off; # master process'], StopSignal: 'SIGQUIT', ExposedPorts: { '80/tcp': {} } }
  return [
    { refs: [busyboxImage, 'docker.io/library/busybox:latest', 'docker.io/library/busybox:1.36'], layers: [rootfs], config: shell, format: 'docker' },
    { refs: [webServerImage, 'docker.io/library/nginx:latest'], layers: [rootfs, webServer('nginx', 80, 'TERM INT QUIT')], config: nginx, format: 'docker' },
    {
      refs: [`${e2e}/httpd:2.4.39-4`, 'docker.io/library/httpd:latest'],
      layers: [rootfs, webServer('httpd-foreground', 80, 'TERM INT WINCH')],
      config: { Cmd: ['httpd-foreground'], StopSignal: 'SIGWINCH', ExposedPorts: { '80/tcp': {} } },
      format: 'docker',
    },
    // The port of images/hostnet-nginx in cri-tools.
    { refs: [`${staging}/hostnet-nginx-${hostArchitecture()}:latest`], layers: [rootfs, webServer('nginx', 12003, 'TERM INT QUIT')], config: nginx, index: false },
    { refs: [`${e2e}/nonewprivs:1.3`], layers: [rootfs, [file('nnp', euidProgram(hostArchitecture()), 0o4755)]], config: { Entrypoint: ['/nnp'] }, format: 'docker' },
    ...['test-image-1', 'test-image-2', 'test-image-3', 'test-image-latest', 'test-image-digest'].map((name) => ({ refs: [`${staging}/${name}:latest`], layers: marked(name), config: shell })),
    { refs: ['1', '2', '3'].map((tag) => `${staging}/test-image-tags:${tag}`), layers: marked('same-image'), config: shell },
    { refs: ['test', 'all'].map((tag) => `${staging}/test-image-tag:${tag}`), layers: marked('test-image-tag'), config: shell },
    ...Object.entries({ 'uid': '1002', 'username': 'www-data', 'uid-group': '1003:1004', 'username-group': 'www-data:1004' })
      .map(([name, User]) => ({ refs: [`${staging}/test-image-user-${name}:latest`], layers: [rootfs], config: { ...shell, User } })),
    {
      refs: [`${staging}/test-image-predefined-group:latest`],
      layers: [rootfs, accounts('default-user:x:1000:1000::/home/default-user:/bin/sh\n', 'default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n')],
      config: { ...shell, User: '1000' },
    },
    // One image in every form that a registry may serve it in.
    ...(['oci', 'docker'] as const).flatMap((format) => (['gzip', 'zstd', 'none'] as const)
      .filter((compression) => format === 'oci' || compression === 'gzip')
      .flatMap((compression) => [true, false].map((index) => ({
        refs: [`registry.k8s.io/cri-shim/formats:${format}-${compression}-${index ? 'index' : 'manifest'}`],
        layers: marked(`${format}-${compression}`),
        config: shell,
        format,
        compression,
        index,
      })))),
  ]
}

/** The pause images differ in a label, so that each version is an image of its own; k8s.gcr.io serves the one of registry.k8s.io. */
const pauseVersions = ['3.1', '3.2', '3.3', '3.4.1', '3.5', '3.6', '3.7', '3.8', '3.9', '3.10', '3.10.1']

async function addPause(content: ContentDir, version: string): Promise<Descriptor> {
  const manifests = await Promise.all((['amd64', 'arm64'] as const).map(async (architecture) => {
    const layer = await addLayer(content, [file('pause', pauseProgram(architecture), 0o755)], 'docker')
    return addImage(content, [layer], architecture, { Entrypoint: ['/pause'], User: '65535:65535', Labels: { version } }, 'docker')
  }))
  return addIndex(content, manifests, 'docker')
}

/**
 * An index over this machine's image and one for the other architecture. The latter holds no file at all: whoever picks the wrong
 * platform gets a container that cannot start.
 */
async function addIndexed(content: ContentDir, own: Descriptor, format: ImageFormat): Promise<Descriptor> {
  const other: Architecture = hostArchitecture() === 'amd64' ? 'arm64' : 'amd64'
  const empty = await addLayer(content, [], format)
  const manifests = [own, await addImage(content, [empty], other, { Labels: { platform: 'not that of this machine' } }, format)]
  return addIndex(content, hostArchitecture() === 'amd64' ? manifests.reverse() : manifests, format)
}

/** Builds every image of the catalogue into a content directory (made when missing) and returns their full names. */
export async function buildCatalog(dir: string): Promise<readonly string[]> {
  await mkdir(dir, { recursive: true })
  const content = new ContentDir(dir)
  const names: string[] = []
  const name = (ref: string, descriptor: Descriptor): void => {
    content.name(ref, descriptor)
    names.push(ref)
  }
  const layers = new Map<string, ReturnType<typeof addLayer>>()
  for (const { refs, layers: contents, config, format = 'oci', compression = 'gzip', index = true } of specs(await busyboxRootfs())) {
    const stored = await Promise.all(contents.map(async (entries, place) => {
      if (place > 0) return addLayer(content, entries, format, compression)
      const key = `${format} ${compression}` // the first layer is the root file system of them all
      const base = layers.get(key) ?? addLayer(content, entries, format, compression)
      layers.set(key, base)
      return base
    }))
    const own = await addImage(content, stored, hostArchitecture(), config, format)
    const descriptor = index ? await addIndexed(content, own, format) : own
    for (const ref of refs) name(ref, descriptor)
  }
  for (const version of pauseVersions) {
    const descriptor = await addPause(content, version)
    for (const host of ['registry.k8s.io', 'k8s.gcr.io']) name(`${host}/pause:${version}`, descriptor)
  }
  await content.finish()
  return names
}
