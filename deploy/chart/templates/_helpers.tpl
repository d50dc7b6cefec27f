{{- define "steadfast.labels" -}}
app.kubernetes.io/name: steadfast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
{{- define "steadfast.selector" -}}
app.kubernetes.io/name: steadfast
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Flags that tell where the power hook is. */}}
{{- define "steadfast.powerHook" -}}
{{- if .Values.powerHook.url }}
- --power-hook={{ .Values.powerHook.url }}
{{- if .Values.powerHook.secret }}
- --power-hook-token=/etc/steadfast/power-hook/token
{{- if .Values.powerHook.ca }}
- --power-hook-ca=/etc/steadfast/power-hook/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end }}
