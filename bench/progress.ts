export interface Progress {
  /** What is being done now, and how far it is. On a terminal it takes the place of the line before; elsewhere each part gets one line. */
  readonly say: (part: string, detail?: string) => void
  /** Something that has to stay visible. */
  readonly note: (text: string) => void
  /** No more progress: the report follows. */
  readonly end: () => void
}

/** Progress on standard error, so that the report alone is on standard output. */
export function startProgress(): Progress {
  const { stderr } = process
  const clear = stderr.isTTY ? '\r\u001B[K' : ''
  let last = ''
  return {
    say: (part, detail) => {
      if (stderr.isTTY) stderr.write(`${clear}${part}${detail === undefined ? ' …' : `: ${detail}`}`)
      else if (part !== last) stderr.write(`${part} …\n`)
      last = part
    },
    note: (text) => { stderr.write(`${clear}${text}\n`) },
    end: () => { stderr.write(clear) },
  }
}
