import { existsSync } from 'node:fs'
import { isDeepStrictEqual } from 'node:util'
import { Collected, type ForeignSection, collectFile } from './collect.ts'
import { readConfigFiles } from './config-files.ts'
import { ConfigError, type Diagnostic, Diagnostics, hasErrors } from './diagnostics.ts'
import { checkHost } from './host-checks.ts'
import { type Overrides, defaultOf, resolveSettings } from './resolve.ts'
import type { Settings, Sources } from './settings.ts'

export type { Overrides } from './resolve.ts'

/** Every place outside the configuration file that loading looks at; tests put their own here. */
export interface ConfigHost {
  /** Looked for in this order when no file is named. */
  readonly files: readonly string[]
  readonly kubeletConfig: string
  readonly cgroupControllers: string
  readonly certsDir: string
  readonly cniPluginDirs: { readonly standard: string; readonly fallback: string; readonly others: readonly string[] }
}

export const DEFAULT_CONFIG_HOST: ConfigHost = {
  files: ['/etc/cri-shim/config.toml', '/etc/containerd/config.toml'],
  kubeletConfig: '/var/lib/kubelet/config.yaml',
  cgroupControllers: '/sys/fs/cgroup/cgroup.controllers',
  certsDir: '/etc/containerd/certs.d',
  cniPluginDirs: { standard: '/opt/cni/bin', fallback: '/usr/lib/cni', others: ['/usr/libexec/cni', '/usr/local/lib/cni'] },
}

export interface LoadOptions {
  /** The configuration file. Absent: the first of the default files that exists; none: built-in defaults. */
  readonly file?: string | undefined
  readonly overrides?: Overrides
  readonly host?: ConfigHost
}

export interface LoadedSettings {
  readonly settings: Settings
  readonly sources: Sources
  /** Warnings; errors are thrown. */
  readonly diagnostics: readonly Diagnostic[]
  /** The file that was read and its imports, in the order in which they were merged; empty: built-in defaults. */
  readonly files: readonly string[]
}

/**
 * Reads the effective settings: flags over the file's imports over the file over the defaults.
 * @throws ConfigError when anything in the configuration is wrong; its message lists every finding with file and line.
 */
export function loadSettings(options: LoadOptions = {}): LoadedSettings {
  const loaded = load(options)
  if (hasErrors(loaded.diagnostics)) throw new ConfigError(loaded.diagnostics)
  return loaded
}

/** The same with the errors among the diagnostics, and the settings as far as they can be told: for looking into a configuration, not for running with it. */
export function inspectSettings(options: LoadOptions = {}): LoadedSettings {
  return load(options)
}

/** Everything that is wrong or suspicious about a configuration, by file and line; never throws for what a file says. */
export function checkConfig(file?: string, options: Omit<LoadOptions, 'file'> = {}): readonly Diagnostic[] {
  return load({ ...options, file }).diagnostics
}

function load(options: LoadOptions): LoadedSettings {
  const host = options.host ?? DEFAULT_CONFIG_HOST
  const diagnostics = new Diagnostics()
  const path = options.file ?? host.files.find((file) => existsSync(file))
  const files = path === undefined ? [] : readConfigFiles(path, diagnostics)
  const collected = new Collected()
  for (const file of files) collectFile(file, collected, diagnostics)
  const { standard, fallback, others } = host.cniPluginDirs
  const resolved = resolveSettings(collected, options.overrides ?? {}, { standard, fallback }, diagnostics)
  for (const section of collected.foreign) reportForeign(section, collected, diagnostics)
  checkHost(resolved.settings, resolved.sources, { ...host, cniPluginDirs: [standard, fallback, ...others] }, diagnostics)
  const read = files.map((file) => file.path)
  return { ...resolved, diagnostics: inFileOrder(diagnostics.list, read), files: read }
}

/**
 * A section of another file version is not read. That is a mistake when it says something; a leftover that says what is in force anyway
 * deserves no more than a warning.
 */
function reportForeign(section: ForeignSection, collected: Collected, diagnostics: Diagnostics): void {
  const { content } = section
  const isInForce =
    content.all().every(({ key, names, value }) => {
      const effective = collected.get(key.id, names)?.value ?? defaultOf(key)
      return key.setting === undefined || value === '' || JSON.stringify(effective) === JSON.stringify(value)
    }) &&
    [...content.options].every(([runtime, entries]) =>
      [...entries].every(([name, entry]) => {
        const effective = collected.options.get(runtime)?.get(name)?.value
        const isEmpty = entry.value === '' || entry.value === false || entry.value === 0
        return effective === undefined ? isEmpty : isDeepStrictEqual(effective, entry.value)
      }),
    )
  if (isInForce) diagnostics.warning('misplaced-section', `${section.message}. What it says is in force without it`, section.origin, { belongs: section.belongs })
  else diagnostics.error('misplaced-section', section.message, section.origin, { belongs: section.belongs })
}

function inFileOrder(list: readonly Diagnostic[], files: readonly string[]): readonly Diagnostic[] {
  const rank = (diagnostic: Diagnostic): number => (diagnostic.file === undefined ? files.length : files.indexOf(diagnostic.file))
  return list.toSorted((a, b) => rank(a) - rank(b) || (a.line ?? 0) - (b.line ?? 0) || (a.column ?? 0) - (b.column ?? 0))
}
