import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { ConfigHost } from './load-settings.ts'

/** A host of files under a temporary directory, for tests: nothing of the machine is looked at. */
export class TestHost implements Disposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'cri-shim-config-'))
  readonly host: ConfigHost = {
    files: [this.path('etc/cri-shim/config.toml'), this.path('etc/containerd/config.toml')],
    kubeletConfig: this.path('var/lib/kubelet/config.yaml'),
    cgroupControllers: this.path('sys/fs/cgroup/cgroup.controllers'),
    certsDir: this.path('etc/containerd/certs.d'),
    cniPluginDirs: { standard: this.path('opt/cni/bin'), fallback: this.path('usr/lib/cni'), others: [this.path('usr/libexec/cni')] },
  }

  path(name: string): string {
    return join(this.directory, name)
  }

  /** Writes a file, `/` in `@/…` of its text standing for the host's root. */
  write(name: string, text: string, mode = 0o644): string {
    const path = this.path(name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, text.replaceAll('@/', `${this.directory}/`))
    chmodSync(path, mode)
    return path
  }

  mkdir(name: string): string {
    mkdirSync(this.path(name), { recursive: true })
    return this.path(name)
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true, force: true })
  }
}
