# What the freelancer installs for himself goes to his home, which lasts: npm's and pip's user prefixes.
export NPM_CONFIG_PREFIX="${NPM_CONFIG_PREFIX:-$HOME/.npm-global}"
case ":$PATH:" in
  *":$HOME/.local/bin:"*) ;;
  *) export PATH="$HOME/.local/bin:$HOME/.npm-global/bin:$PATH" ;;
esac
