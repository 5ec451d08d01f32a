import { lstatSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

/**
 * The paths that an absolute pattern matches, sorted, by the rules of Go's filepath.Glob, which resolves containerd's imports:
 * `*`, `?` and `[a-z]` within one path element, a leading dot is nothing special, an unreadable directory has no matches.
 */
export function globPaths(pattern: string): string[] {
  let found = ['/']
  for (const element of pattern.split('/').filter((part) => part !== '')) {
    const matcher = /[*?[\\]/.test(element) ? elementMatcher(element) : undefined
    found = found.flatMap((directory) => {
      if (matcher === undefined) return exists(join(directory, element)) ? [join(directory, element)] : []
      return names(directory)
        .filter((name) => matcher.test(name))
        .map((name) => join(directory, name))
    })
  }
  return found
}

function elementMatcher(element: string): RegExp {
  let source = ''
  for (let index = 0; index < element.length; index++) {
    const char = element[index] ?? ''
    const close = char === '[' ? element.indexOf(']', index + 2) : -1
    if (char === '*') source += '[^/]*'
    else if (char === '?') source += '[^/]'
    else if (char === '\\') source += escape(element[++index] ?? '\\')
    else if (close === -1) source += escape(char)
    else {
      const set = element.slice(index + 1, close).replaceAll('\\', '\\\\')
      source += `[${set}]`
      index = close
    }
  }
  try {
    return new RegExp(`^${source}$`, 's')
  } catch {
    return /^(?!)/
  }
}

function escape(char: string): string {
  return char.replaceAll(/[.*+?^${}()|[\]\\/]/g, '\\$&')
}

function names(directory: string): string[] {
  try {
    return readdirSync(directory).sort()
  } catch {
    return []
  }
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}
